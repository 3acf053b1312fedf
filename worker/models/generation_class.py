"""Select the class of transformers that loads a model which generates text, and how it numbers the tokens of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from jobs.access.vision_models import takes_images
from worker.models.load import ModelFolder, load_config
from worker.models.transformers_internals import config_classes


def generation_class(source: ModelFolder) -> Any:
    """The Auto class of a model that generates text, from texts alone or also from images.

    Some models are in both classes; their images need the second one.

    Raises:
        InvalidModel: The model is of a type that transformers does not know.
    """
    kind = type(load_config(source))
    if kind not in config_classes(AutoModelForImageTextToText):
        return AutoModelForCausalLM
    is_both = kind in config_classes(AutoModelForCausalLM)
    return (
        AutoModelForCausalLM
        if is_both and not takes_images(source.path, name=source.name)
        else (AutoModelForImageTextToText)
    )


def rope_index_of(model: PreTrainedModel) -> Callable[..., Any] | None:
    """The method with which a model finds the positions of a prompt's tokens in time, height and width; None for a
    model that numbers all tokens one after the other."""
    for owner in (model, model.base_model):
        found = getattr(owner, "get_rope_index", None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    return None
