"""Which rows are computed one at a time although their tensors have equal shapes, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

TASKS_ALONE: Mapping[str, str] = {
    "text-to-audio": "a model such as VITS draws the length of a sound at random and pads a batch to its longest sound",
    "decision": "the pipeline's forward pass is itself a loop over prompts",
    "mask-generation": "the number of masks of an image is known only after they are computed",
    "any-to-any": "the processors of different models combine rows differently",
}
"""Task -> why its rows are never joined."""
TASKS_WHOLE: Mapping[str, str] = {
    "mask-generation": "preparing an image runs the vision encoder, which belongs on the device",
}
"""Task -> why its rows are prepared on the forward thread, too."""


def reason_to_compute_alone(task: str, pipeline: Any, parameters: Mapping[str, Any]) -> str | None:
    """Why a row must not share a forward pass with others, or None.

    Args:
        task: The task's name.
        pipeline: The task's pipeline, with the model.
        parameters: The parameters that the pipeline passes to its forward pass.
    """
    if task in TASKS_ALONE:
        return TASKS_ALONE[task]
    config = pipeline.model.config
    if task == "table-question-answering" and parameters.get("sequential"):
        return "with `sequential`, a question depends on the answers to the other rows of its batch"
    if task == "document-question-answering" and config.model_type == "vision-encoder-decoder":
        return "the pipeline passes options of `generate` with each row"
    is_whisper = task == "automatic-speech-recognition" and config.model_type == "whisper"
    if is_whisper and parameters.get("return_timestamps") == "word":
        return "the times of words depend on the longest row of the batch"
    if draws(pipeline, parameters):
        return "the random numbers of a row would depend on the other rows of its batch"
    return None


def draws(pipeline: Any, parameters: Mapping[str, Any]) -> bool:
    """Whether a row's output depends on random numbers."""
    if pipeline.task == "text-to-audio":
        return True
    if not pipeline.model.can_generate():
        return False
    selected: dict[str, Any] = {**parameters, **(parameters.get("generate_kwargs") or {})}
    config = pipeline.model.generation_config
    if isinstance(selected.get("temperature"), (list, tuple)):  # Whisper samples when it falls back to a higher one
        return True
    return bool(selected.get("do_sample", getattr(config, "do_sample", False)))


@contextmanager
def fixed_randomness(device: torch.device) -> Iterator[None]:
    """Use the same random numbers for each row, and restore the process's random state afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield
