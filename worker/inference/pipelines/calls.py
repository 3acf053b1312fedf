"""Open a row's media, and make the arguments of its pipeline's call from it, for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError, RowErrorCode
from worker.inference.generation.images.image_chats import open_chat
from worker.inference.pipelines.row_tables import PARSERS
from worker.models.media.open_media import open_media

LABELS = "candidate_labels"
Values = Mapping[str, Any]
Arguments = tuple[Any, ...]
Options = dict[str, Any]
_ROW_OPTIONS = (LABELS,)
"""Inputs of a row that replace the job's parameter of the same name if they are not empty."""

_TAKE_LISTS_OF_LABELS = ("zero-shot-audio-classification", "zero-shot-image-classification")
"""Tasks whose pipelines would treat each letter of a text as a label."""


def row_labels(value: Any, *, may_be_empty: bool) -> list[str] | str | RowError:
    """Parse a row's own labels: a list, a text with commas, or JSON text of a list.

    Values are checked here because a pipeline would make a label of anything in a list, and of each part of a list that
    is written as text.

    Args:
        value: The value from the source.
        may_be_empty: Whether the job has labels that replace an empty value.
    """
    is_json = isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]")
    try:
        labels = orjson.loads(value) if is_json else value
    except orjson.JSONDecodeError:
        labels = None
    if isinstance(labels, str) or (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        if isinstance(labels, list) and not all(label.strip() for label in labels):
            return RowError(RowErrorCode.INVALID_VALUE, f"{LABELS} has an empty label")
        is_empty = not labels.strip(", ") if isinstance(labels, str) else not labels
        if is_empty and not may_be_empty:
            return RowError(RowErrorCode.NULL_VALUE, "neither the row nor the job has labels")
        return [] if is_empty else labels
    message = f"{LABELS} must be a list of texts, JSON text of such a list, or a text that separates them by commas"
    return RowError(RowErrorCode.WRONG_TYPE, message)


def open_row(
    task: str, values: Values, rules: AccessRules, *, rate: int | None, has_labels: bool
) -> dict[str, Any] | RowError:
    """Open the images and sounds of a row, and parse its labels, table, and words with boxes.

    Args:
        task: A name in `CALLS`.
        values: The row's values, from the source.
        rules: Access rules; see `open_media`.
        rate: Sampling rate of the model in samples per second; None if it takes no sounds.
        has_labels: Whether the job has labels for rows without their own.

    Raises:
        InvalidInput: This host lacks the package that decodes the sound.
    """
    opened: dict[str, Any] = {}
    for name, value in values.items():
        is_chat = task == "image-text-to-text" and isinstance(value, list)
        if name == "text" and not isinstance(value, str) and not is_chat:
            return RowError(RowErrorCode.WRONG_TYPE, f"input 'text' must be a text for {task}, not a list")
        if name == LABELS:
            found = row_labels(value, may_be_empty=has_labels)
        elif name in PARSERS:
            found = PARSERS[name](value)
        else:
            found = open_media(name, value, rules, rate=rate)
        if isinstance(found, RowError):
            return found
        opened[name] = found
    if isinstance(opened.get("text"), list):
        chat = open_chat(opened["text"], opened.pop("image"), rules)
        return chat if isinstance(chat, RowError) else {"text": chat}
    return opened


def _only(name: str) -> Callable[[Values, Options], tuple[Arguments, Options]]:
    return lambda values, options: ((values[name],), options)


def _table(values: Values, options: Options) -> tuple[Arguments, Options]:
    return ({"table": values["table"], "query": values["query"]},), options


def _document(values: Values, options: Options) -> tuple[Arguments, Options]:
    row = {name: values[name] for name in ("question", "image")}
    if values.get("word_boxes"):
        row["word_boxes"] = values["word_boxes"]
    return (row,), options


def _image_and_text(values: Values, options: Options) -> tuple[Arguments, Options]:
    if "image" not in values:  # the images are inside the chat
        return (), {**options, "text": values["text"]}
    return (), {**options, "images": values["image"], "text": values["text"]}


def _any(values: Values, options: Options) -> tuple[Arguments, Options]:
    names = {"text": "text", "image": "images", "audio": "audio", "video": "videos"}
    return (), {**options, **{names[name]: value for name, value in values.items() if value is not None}}


def _pair(values: Values, options: Options) -> tuple[Arguments, Options]:
    return ([values["image"], values["image_pair"]],), options


def _decision(values: Values, options: Options) -> tuple[Arguments, Options]:
    return ({"state": values["state"], "questions": values["questions"]},), options


CALLS: Mapping[str, Callable[[Values, Options], tuple[Arguments, Options]]] = {
    "any-to-any": _any,
    "audio-classification": _only("audio"),
    "automatic-speech-recognition": _only("audio"),
    "decision": _decision,
    "depth-estimation": _only("image"),
    "document-question-answering": _document,
    "feature-extraction": _only("text"),
    "image-classification": _only("image"),
    "image-feature-extraction": _only("image"),
    "image-segmentation": _only("image"),
    "image-text-to-text": _image_and_text,
    "keypoint-matching": _pair,
    "mask-generation": _only("image"),
    "object-detection": _only("image"),
    "table-question-answering": _table,
    "text-to-audio": _only("text"),
    "video-classification": _only("video"),
    "zero-shot-audio-classification": _only("audio"),
    "zero-shot-classification": _only("text"),
    "zero-shot-image-classification": _only("image"),
    "zero-shot-object-detection": _only("image"),
}
"""Task -> function that makes the arguments and options of its pipeline's call for a row."""


def call_of(task: str, values: Values, parameters: Options) -> tuple[Arguments, Options]:
    """The arguments of a pipeline's call for one row.

    Args:
        task: A name in `CALLS`.
        values: The row's values, with its media opened.
        parameters: The job's parameters. The call takes them over, so the caller must not use them afterwards.
    """
    options = {**parameters, **{name: values[name] for name in _ROW_OPTIONS if values.get(name)}}
    labels = options.get(LABELS)
    if isinstance(labels, str) and task in _TAKE_LISTS_OF_LABELS:
        options[LABELS] = [label.strip() for label in labels.split(",") if label.strip()]
    return CALLS[task](values, options)
