"""The inference tasks: their names, aliases, and the inputs of their rows. Must not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.messages import did_you_mean, short


@dataclass(frozen=True, slots=True)
class Task:
    """One inference task by transformers' pipeline name (plus `embeddings`)."""

    name: str
    inputs: tuple[str, ...]
    """Names of the inputs that a row must have; `input.columns` maps them to the user's columns."""
    optional: tuple[str, ...] = ()
    """Names of the inputs that a row may have."""
    alternative: str | None = None
    """Name of an input that a row may have instead of `inputs`. It is read only if `input.columns` names its column."""


_ALL = (
    Task("embeddings", ("text",), alternative="image"),
    Task("text-classification", ("text",), ("text_pair",)),
    Task("token-classification", ("text",)),
    Task("fill-mask", ("text",)),
    Task("feature-extraction", ("text",)),
    Task("text-generation", ("text",), ("parameters",)),
    Task("zero-shot-classification", ("text",), ("candidate_labels",)),
    Task("table-question-answering", ("table", "query")),
    Task("document-question-answering", ("image", "question"), ("word_boxes",)),
    Task("text-to-audio", ("text",)),
    Task("audio-classification", ("audio",)),
    Task("automatic-speech-recognition", ("audio",)),
    Task("zero-shot-audio-classification", ("audio",), ("candidate_labels",)),
    Task("image-classification", ("image",)),
    Task("image-feature-extraction", ("image",)),
    Task("image-segmentation", ("image",)),
    Task("image-text-to-text", ("text", "image")),
    Task("zero-shot-image-classification", ("image",), ("candidate_labels",)),
    Task("object-detection", ("image",)),
    Task("zero-shot-object-detection", ("image",), ("candidate_labels",)),
    Task("depth-estimation", ("image",)),
    Task("video-classification", ("video",)),
    Task("mask-generation", ("image",)),
    Task("keypoint-matching", ("image", "image_pair")),
    Task("any-to-any", ("text",), ("image", "audio", "video")),
    Task("decision", ("state", "questions")),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""All tasks by name."""

ALIASES: dict[str, str] = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "text-to-speech": "text-to-audio",
    "embedding": "embeddings",
    "sentence-similarity": "embeddings",
}
"""Alternative name that a spec may use -> name of the task."""

REMOVED_TASKS: dict[str, str] = {
    "text2text-generation": "Use the `text-generation` pipeline with a chat model instead.",
    "summarization": "Use the `text-generation` pipeline with a chat model instead.",
    "translation": "Use the `text-generation` pipeline with a chat model instead.",
    "question-answering": "Use the `text-generation` pipeline with a chat model instead.",
    "visual-question-answering": "Use the `image-text-to-text` pipeline with a vision-language chat model instead.",
    "vqa": "Use the `image-text-to-text` pipeline with a vision-language chat model instead.",
    "image-to-image": "For image generation tasks, please use 🤗 Diffusers instead.",
    "image-to-text": "Use the `image-text-to-text` pipeline instead.",
}
"""Task that was removed from transformers -> transformers' advice on what to use instead."""


def find_task(name: str) -> Task | None:
    """Return the task with this name or alias, or None."""
    return TASKS.get(ALIASES.get(name, name))


def unknown_task(name: str) -> str:
    """Return the error message for an unknown task, with the closest known name."""
    removed = REMOVED_TASKS.get("translation" if name.startswith("translation_") else name)
    if removed is not None:
        return f"'{name}' has been removed from transformers. {removed}"
    hint = did_you_mean(name, [*TASKS, *ALIASES]) or f"; known tasks: {', '.join(TASKS)}"
    return f"unknown task '{short(name)}'{hint}"
