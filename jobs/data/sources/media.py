"""Convert images, audio and video in table cells to the form that workers expect."""

from __future__ import annotations

import base64
import binascii
from pathlib import PurePosixPath
from typing import Any

from jobs.access.paths import resolve_input_path
from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError, RowErrorCode
from jobs.errors import UserError
from jobs.specs.bounds import LONGEST_NAME_BYTES, LONGEST_PATH_BYTES

IMAGE_INPUTS = frozenset({"image", "image_pair"})
MEDIA_INPUTS = IMAGE_INPUTS | {"audio", "video"}
_SOUND_BEGINNINGS = (
    b"RIFF",
    b"ID3",
    b"fLaC",
    b"OggS",
    b"\x1aE\xdf\xa3",
    b"FORM",
    b"caff",
    b".snd",
    b"#!AMR",
    b"RF64",
    b"0&\xb2u",
)
MEDIA_BEGINNINGS = (*_SOUND_BEGINNINGS, b"\x89PNG", b"\xff\xd8", b"GIF8", b"BM", b"II*\0", b"MM\0*")
"""First bytes of files with sounds or images."""
_SOUND_SUFFIXES = frozenset(
    {".aac", ".aif", ".aiff", ".amr", ".flac", ".m4a", ".mka", ".mkv", ".mov", ".mp3", ".mp4", ".oga", ".ogg", ".opus",
     ".webm", ".wma"}
)  # fmt: skip
_BASE64_HEAD = 64  # characters, which are enough to recognize a file
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


def stored_bytes(value: Any, rules: AccessRules) -> int:
    """Size of an image, sound or video as it is stored: of its file, of its bytes or of its text.

    Args:
        value: What `media_value` returned.
        rules: The access rules of files.

    Returns:
        The size in bytes; 0 for a file that does not exist or must not be read, and for samples and other values.
    """
    if isinstance(value, bytes):
        return len(value)
    if not isinstance(value, str):
        return 0
    if len(value) >= LONGEST_PATH_BYTES or "\0" in value or is_data_url(value):
        return len(value)
    try:
        return resolve_input_path(value, rules).stat().st_size
    except (UserError, OSError):
        return 0


def is_data_url(text: str) -> bool:
    """Whether a text is a `data:` URL, and so never a path. Letter case does not count in the name of a scheme."""
    return text[:5].lower() == "data:"


def decode_base64(text: str) -> bytes | None:
    """Decode base64; returns None if the text is not base64.

    The text may use the standard or the URL-safe alphabet, contain line breaks, and omit the `=` padding.
    """
    plain = "".join(text.split()).translate(_USUAL_ALPHABET).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def may_be_sound(data: bytes) -> bool:
    """Whether bytes begin like a sound file, or like a video that may contain sound."""
    return data.startswith(_SOUND_BEGINNINGS) or data[4:8] == b"ftyp" or (data[:1] == b"\xff" and data[1:2] >= b"\xe0")


def is_compressed_sound(value: Any) -> bool:
    """Whether a cell certainly has a sound or film that is not a WAV file: by its path's suffix, or its first bytes.

    Args:
        value: What `media_value` returned.
    """
    if isinstance(value, str):
        data = value
        if is_data_url(value):
            data = value[: 2 * _BASE64_HEAD].partition(",")[2]
        elif len(value) <= LONGEST_NAME_BYTES:  # may be a path
            return PurePosixPath(value).suffix.lower() in _SOUND_SUFFIXES
        value = decode_base64(data[:_BASE64_HEAD])
    return isinstance(value, bytes) and may_be_sound(value) and not value.startswith(b"RIFF")
