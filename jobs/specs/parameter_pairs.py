"""Parameters of a task that do not go together, and arguments of tokenizers that the task itself sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.errors import InvalidSpec

_EXCLUSIVE: Mapping[str, tuple[tuple[str, str], ...]] = {
    "feature-extraction": (("truncation", "tokenize_kwargs.truncation"),),
    "image-text-to-text": (
        ("max_new_tokens", "generate_kwargs.max_new_tokens"),
        ("return_full_text", "return_tensors"),
    ),
    "any-to-any": (
        ("max_new_tokens", "generate_kwargs.max_new_tokens"),
        ("return_full_text", "return_tensors"),
    ),
}
"""Task -> pairs of parameters of which its pipeline takes one alone."""
_OURS: Mapping[str, frozenset[str]] = {
    "tokenize_kwargs": frozenset({"return_tensors", "text"}),
    "image_processor_kwargs": frozenset({"return_tensors", "images"}),
    "processor_kwargs": frozenset({"return_tensors", "text", "images", "videos", "audio"}),
}
"""Parameter -> what a pipeline gives to its tokenizer or processor beside that parameter's own values."""


def check_together(task: str, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that exclude each other, or of which one needs another.

    Raises:
        InvalidSpec: The message and `param` name one of them.
    """
    for one, other in _EXCLUSIVE.get(task, ()):
        if _value(parameters, one) is not None and _value(parameters, other) is not None:
            raise _refused(other, f"does not go with parameters.{one}: give one of the two")
    for name, ours in _OURS.items():
        given = parameters.get(name)
        taken = sorted(ours & given.keys()) if isinstance(given, Mapping) else []
        if taken:
            raise _refused(f"{name}.{taken[0]}", f"cannot be set: task '{task}' sets it itself")
    if task == "token-classification":
        if parameters.get("stride") is not None and parameters.get("aggregation_strategy") in (None, "none"):
            raise _refused("stride", "goes with an aggregation_strategy other than none")
        if parameters.get("delimiter") is not None and not parameters.get("is_split_into_words"):
            raise _refused("delimiter", "stands between words, so it goes with is_split_into_words")


def _value(parameters: Mapping[str, Any], name: str) -> Any:
    outer, _, inner = name.partition(".")
    value = parameters.get(outer)
    if not inner:
        return value
    return value.get(inner) if isinstance(value, Mapping) else None


def _refused(name: str, reason: str) -> InvalidSpec:
    return InvalidSpec(f"parameters.{name}: {reason}", param=f"parameters.{name}")
