"""Merges adapters into a model's weights at the end of a training, without changing any other weight."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)


def merged(model: Any) -> Any:
    """Merge a model's adapters into its weights. A model without adapters is returned unchanged.

    Two modules may share a weight, as a language model's embeddings and head often do. An adapter of one of them
    changed only that module during training and evaluation. Both modules therefore get a weight of their own, and the
    configuration says so, so that the saved model computes what was evaluated.

    Args:
        model: A model of transformers, or one that peft has wrapped.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    _untie_weights(model)
    with warnings.catch_warnings():  # about tied weights, which were untied just above
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged_model = model.merge_and_unload()
    _forget_ties(merged_model)
    return merged_model


def _untie_weights(model: Any) -> None:
    """Give each adapted module that shares a weight with another module its own copy of the weight."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    owners: dict[int, set[int]] = {}  # weight -> modules
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            owners.setdefault(id(weight), set()).add(id(module))
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        base = module.get_base_layer()
        for name, weight in list(base.named_parameters(recurse=False)):
            if len(owners[id(weight)]) > 1:
                setattr(base, name, _copy(weight))


def _forget_ties(model: Any) -> None:
    """If two tied weights now differ, mark all weights as untied, so that each is saved and loaded."""
    ties = dict(model.all_tied_weights_keys)
    if all(_weight(model, one) is _weight(model, other) for one, other in ties.items()):
        return
    for name in ties:  # also weights that are still shared, since loading no longer copies one from another
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, attribute, _copy(getattr(module, attribute)))
    model.all_tied_weights_keys = {}
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    logger.info("adapters changed one of two shared weights, so both are saved: %s", ", ".join(ties))


def _weight(model: Any, name: str) -> torch.Tensor:
    weight: torch.Tensor = model.get_parameter(name)
    return weight


def _copy(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
