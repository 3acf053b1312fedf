"""Bring images, sounds and films from a table's cell into the form that workers take."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from jobs.data.rows import RowError, RowErrorCode

IMAGE_INPUTS = frozenset({"image", "image_pair"})
MEDIA_INPUTS = IMAGE_INPUTS | {"audio", "video"}


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
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            return RowError(RowErrorCode.INVALID_VALUE, f"input '{name}': its bytes are not base64")
    return data
