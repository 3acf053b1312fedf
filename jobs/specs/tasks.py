"""What each inference task is called, and which inputs a row of it has. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.messages import did_you_mean, short


@dataclass(frozen=True, slots=True)
class Task:
    """One inference task by transformers' pipeline name (plus `embeddings`)."""

    name: str
    inputs: tuple[str, ...]
    """Names a row must bring; `input.columns` maps the user's columns onto them."""
    optional: tuple[str, ...] = ()
    """Names a row may bring as well."""


_ALL = (
    Task("embeddings", ("text",)),
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
"""Every task by name."""

ALIASES: dict[str, str] = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "text-to-speech": "text-to-audio",
    "embedding": "embeddings",
    "sentence-similarity": "embeddings",
}
"""Other names people use, as transformers accepts them."""

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
"""Tasks that transformers no longer has, and what it says to use instead."""


def find_task(name: str) -> Task | None:
    """The task called `name` or an alias of it, or None."""
    return TASKS.get(ALIASES.get(name, name))


def unknown_task(name: str) -> str:
    """The error message for an unknown task, with what may have been meant."""
    removed = REMOVED_TASKS.get("translation" if name.startswith("translation_") else name)
    if removed is not None:
        return f"'{name}' has been removed from transformers. {removed}"
    hint = did_you_mean(name, [*TASKS, *ALIASES]) or f"; known tasks: {', '.join(TASKS)}"
    return f"unknown task '{short(name)}'{hint}"
