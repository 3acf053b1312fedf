"""Which rows are computed one at a time although their tensors have equal shapes, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TASKS_ALONE: Mapping[str, str] = {
    "text-to-audio": "a model such as VITS draws the length of a sound at random and fills a batch up to its longest",
    "decision": "the pipeline's forward pass is itself a loop over prompts",
    "mask-generation": "how many masks an image has is known only once they are computed",
    "any-to-any": "what its processors make of several rows differs from model to model",
}
"""Task -> why its rows are never joined."""
TASKS_WHOLE: Mapping[str, str] = {
    "mask-generation": "preparing an image runs the vision encoder, which is the device's work",
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
        return "questions that build on each other's answers see the other rows of a batch"
    if task == "document-question-answering" and config.model_type == "vision-encoder-decoder":
        return "the pipeline hands switches of `generate` on with each row"
    if task == "automatic-speech-recognition" and config.model_type == "whisper":
        if parameters.get("return_language"):
            return "the pipeline reads the language of a batch's first row only"
        if parameters.get("return_timestamps") == "word":
            return "the times of words are found among as many tokens as the longest row of a batch has"
    if draws(pipeline, parameters):
        return "which random numbers a row gets would depend on the rows beside it"
    return None


def draws(pipeline: Any, parameters: Mapping[str, Any]) -> bool:
    """Whether a row's output depends on random numbers."""
    if pipeline.task == "text-to-audio":
        return True
    if not pipeline.model.can_generate():
        return False
    chosen: dict[str, Any] = {**parameters, **(parameters.get("generate_kwargs") or {})}
    config = pipeline.model.generation_config
    if isinstance(chosen.get("temperature"), (list, tuple)):  # Whisper samples when it falls back to a higher one
        return True
    return bool(chosen.get("do_sample", getattr(config, "do_sample", False)))
