"""Adapters at the end of a training: they become part of the model's weights, without changing any other weight."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)


def merged(model: Any) -> Any:
    """A model whose adapters are part of its weights; one without adapters as it is.

    Two modules may share one weight, as a language model's embeddings and its head often do. Adapters of one of the two
    changed only that module while they were trained and evaluated, so each is given a weight of its own then, and the
    configuration says so: what is delivered computes what was evaluated.

    Args:
        model: A model of transformers, or one that peft has wrapped.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    _part_weights(model)
    with warnings.catch_warnings():  # on tied weights, which are parted just above
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged_model = model.merge_and_unload()
    _forget_ties(merged_model)
    return merged_model


def _part_weights(model: Any) -> None:
    """Give each module with adapters that shares its weight with another module a copy of that weight."""
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
    """Where two weights that the configuration ties are no longer one, have all of them saved, and loaded as saved."""
    ties = dict(model.all_tied_weights_keys)
    if all(_weight(model, one) is _weight(model, other) for one, other in ties.items()):
        return
    for name in ties:  # those that are one still, too: none is made of another any more when the model is loaded
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, attribute, _copy(getattr(module, attribute)))
    model.all_tied_weights_keys = {}
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    logger.info("adapters changed one of two weights that the model shared; both are saved: %s", ", ".join(ties))


def _weight(model: Any, name: str) -> torch.Tensor:
    weight: torch.Tensor = model.get_parameter(name)
    return weight


def _copy(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
