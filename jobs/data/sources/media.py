"""Convert images, audio and video in table cells to the form that workers expect."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from jobs.data.rows import RowError, RowErrorCode

IMAGE_INPUTS = frozenset({"image", "image_pair"})
MEDIA_INPUTS = IMAGE_INPUTS | {"audio", "video"}
_USUAL_ALPHABET = str.maketrans("-_", "+/")


def media_value(name: str, value: Any) -> Any:
    """Convert one cell of a media input such as `image`.

    Data sets store media as `{"bytes": ..., "path": ...}`; in JSON files, the bytes are base64. Paths, URLs and all
    other values are passed on unchanged.

    Args:
        name: The task's name of the input.
        value: The cell; it is not None.

    Returns:
        A path, a URL, bytes of encoded media, another value, or a RowError.
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
    """Decode base64; returns None if the text is not base64.

    The text may use the standard or the URL-safe alphabet, contain line breaks, and omit the `=` padding.
    """
    plain = "".join(text.split()).translate(_USUAL_ALPHABET).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
