"""Writes and reads the models of a user's module, and lists their trained weights."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from worker.training.modules.user_module import Parts


def write_models(folder: Path, parts: Parts) -> None:
    """Write each model's weights and buffers as `<name>.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in parts.models.items():
        safetensors.torch.save_model(model, str(folder / f"{name}.safetensors"))


def read_models(folder: Path, parts: Parts) -> None:
    """Load the weights and buffers that `write_models` wrote."""
    for name, model in parts.models.items():
        safetensors.torch.load_model(model, str(folder / f"{name}.safetensors"))


def learned_weights(parts: Parts) -> list[torch.Tensor]:
    """Return all weights that an optimizer updates."""
    weights: dict[int, torch.Tensor] = {}
    for phase in parts.phases:
        for group in phase.optimizer.param_groups:
            weights |= {id(weight): weight for weight in group["params"]}
    return list(weights.values())


def num_learned(parts: Parts) -> dict[str, int]:
    """Return the number of trained weights of each model, by the model's name."""
    learned = {id(weight) for weight in learned_weights(parts)}
    return {
        name: sum(weight.numel() for weight in model.parameters() if id(weight) in learned)
        for name, model in parts.models.items()
    }
