"""Bring images, sounds and films from a table's cell into the form that workers take."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from jobs.data.rows import RowError, RowErrorCode

IMAGE_INPUTS = frozenset({"image", "image_pair"})
MEDIA_INPUTS = IMAGE_INPUTS | {"audio", "video"}
_USUAL_ALPHABET = str.maketrans("-_", "+/")


def media_value(name: str, value: Any) -> Any:
    """What a worker gets for one cell of an input such as `image`.

    Data sets keep media as `{"bytes": ..., "path": ...}`, and JSON files the bytes as base64. A path, a URL, and
    anything else, passes as it is.

    Args:
        name: the task's name of the input.
        value: the cell, not None.

    Returns:
        The value, encoded media as bytes; or a RowError.
    """
    if not isinstance(value, dict) or not value.keys() <= {"bytes", "path"}:
        return value
    data = value.get("bytes")
    if data is None:
        found = value.get("path")
        return (
            RowError(RowErrorCode.NULL_VALUE, f"input '{name}' has neither bytes nor a path")
            if found is None
            else found
        )
    if isinstance(data, str):
        decoded = decode_base64(data)
        wrong = RowError(RowErrorCode.INVALID_VALUE, f"input '{name}': its bytes are not base64")
        return wrong if decoded is None else decoded
    return data


def decode_base64(text: str) -> bytes | None:
    """The bytes of base64, or None for a text that is none.

    It may be in its usual or its URL-safe alphabet, broken into lines or not, with or without `=` at its end.
    """
    plain = "".join(text.split()).translate(_USUAL_ALPHABET).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
