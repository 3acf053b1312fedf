"""Open images, sounds and videos of rows for pipelines: from inline data, or from files under the input roots.

A pipeline would open any path, fetch any URL and treat any other text as base64, so it never gets such texts.
"""

from __future__ import annotations

import importlib
import io
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jobs.access.paths import resolve_input_path
from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError, RowErrorCode
from jobs.data.sources.media import MEDIA_INPUTS, decode_base64
from jobs.errors import InvalidInput, UserError
from jobs.messages import short
from jobs.specs.bounds import LONGEST_NAME_BYTES, LONGEST_PATH_BYTES
from worker.models.failures import plain_sentence
from worker.models.sound import decode_sound, impossible_rate, may_be_sound, resample, too_long

_BEGINNINGS = (
    b"\x89PNG",
    b"\xff\xd8",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"ID3",
    b"fLaC",
    b"OggS",
    b"\x1aE\xdf\xa3",
)
_NOT_FINITE = RowError(RowErrorCode.INVALID_AUDIO, "input 'audio': one of its samples is null or no finite number")
"""Speech recognition would return an empty text for such a sound."""
_SHOWN = 100  # characters of the user's own text in a message
_NEEDS: Mapping[str, tuple[str, str]] = {
    "mask-generation": ("torchvision", "the build of torchvision that belongs to its torch"),
    "video-classification": ("av", "the package av: pip install 'stoker[audio]'"),
}
"""Task -> the package that its pipeline requires, and how to install it."""


def check_packages(task: str) -> None:
    """Make sure that this host has the packages that a task needs.

    Raises:
        InvalidInput: A package is missing or does not work on this host.
    """
    if task not in _NEEDS:
        return
    package, advice = _NEEDS[task]
    try:
        importlib.import_module(package)  # a build for another torch version fails here
    except (ImportError, RuntimeError, OSError) as error:
        raise InvalidInput(f"task: '{task}' needs {advice}; install it on the workers' hosts", param="task") from error


def open_media(name: str, value: Any, rules: AccessRules, *, rate: int | None = None) -> Any:
    """Convert a row's value to what its pipeline gets.

    Args:
        name: The task's name for the input.
        value: The value from the source.
        rules: The allowed `input_roots` of paths, and the limits for the size of an image and the length of a sound.
        rate: Sampling rate of the model in samples per second; for sounds only.

    Returns:
        An RGB image, samples at `rate`, the bytes or path of a video, any other input unchanged, or a RowError.

    Raises:
        InvalidInput: This host lacks the package that decodes the sound.
    """
    if name not in MEDIA_INPUTS or value is None:
        return value
    if isinstance(value, str):
        value = _from_text(name, value, rules, as_path=name == "video")
    if isinstance(value, RowError):
        return value
    if name == "audio":
        return _open_sound(value, rules, rate)
    if name == "video":
        return (
            value
            if isinstance(value, str | bytes)
            else RowError(RowErrorCode.WRONG_TYPE, "input 'video' must be a path or data")
        )
    return _open_image(name, value, rules)


@contextmanager
def as_files(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The same values, with the bytes of videos written to files: pipelines read videos only from files."""
    video = values.get("video")
    if not isinstance(video, bytes):
        yield dict(values)
        return
    with tempfile.TemporaryDirectory(prefix="stoker-") as folder:
        path = Path(folder) / "video"
        path.write_bytes(video)
        yield {**values, "video": str(path)}


def _from_text(name: str, value: str, rules: AccessRules, *, as_path: bool) -> str | bytes | RowError:
    """The bytes that a text contains or names: a data URL, base64 or a path."""
    if value.startswith("data:"):
        return _from_data_url(name, value)
    if "://" in value[:_SHOWN] and not value.startswith("file://"):
        return RowError(RowErrorCode.URL_NOT_ALLOWED, f"input '{name}' is a URL; give a path, or the data itself")
    data = _from_base64(value)
    if data is not None:
        return data
    shown = short(value, _SHOWN)
    longest = max(map(len, value.split("/")))
    if len(value) >= LONGEST_PATH_BYTES or longest > LONGEST_NAME_BYTES or "\0" in value:
        message = f"input '{name}': there is no file '{shown}', nor is it base64 of a known kind of image or sound"
        return RowError(RowErrorCode.MISSING_FILE, message)
    try:
        path = resolve_input_path(value, rules, param=name)
        if not path.is_file():
            return RowError(RowErrorCode.MISSING_FILE, f"input '{name}': there is no file '{shown}'")
        return str(path) if as_path else path.read_bytes()
    except UserError as error:
        return RowError(RowErrorCode.FORBIDDEN_PATH, error.message)
    except OSError as error:
        return RowError(RowErrorCode.MISSING_FILE, f"input '{name}': '{shown}' cannot be read: {error.strerror}")


def _from_data_url(name: str, value: str) -> bytes | RowError:
    kind, comma, data = value.partition(",")
    wrong = RowError(RowErrorCode.INVALID_VALUE, f"input '{name}': its data: URL is not valid")
    if not comma:
        return wrong
    if not kind.endswith(";base64"):
        return urllib.parse.unquote_to_bytes(data)
    decoded = decode_base64(urllib.parse.unquote(data))
    return wrong if decoded is None else decoded


def _from_base64(value: str) -> bytes | None:
    """Decode base64 without a `data:` prefix; None for a text that could also be the name of a file."""
    data = decode_base64(value)
    if data is None or data.startswith(_BEGINNINGS):
        return data
    # What is longer than a name may be, and all base64, is data. What may be a long path nevertheless is so only where
    # it begins as a sound does.
    is_path_like = value.startswith("/") or "-" in value or "_" in value
    return data if len(value) > LONGEST_NAME_BYTES and (may_be_sound(data) or not is_path_like) else None


def _open_image(name: str, value: Any, rules: AccessRules) -> Any:
    # Imported by name, since type checkers complain if it is not installed.
    pillow, operations = importlib.import_module("PIL.Image"), importlib.import_module("PIL.ImageOps")
    if not isinstance(value, bytes | pillow.Image):
        return RowError(RowErrorCode.WRONG_TYPE, f"input '{name}' must be a path, base64 or the bytes of an image")
    limit = rules.max_image_pixels
    large = RowError(
        RowErrorCode.ROW_TOO_LARGE, f"input '{name}' has more than {limit} pixels (setting max_image_pixels)"
    )
    try:
        image = pillow.open(io.BytesIO(value)) if isinstance(value, bytes) else value
        if image.width * image.height > limit:  # before the pixels are decoded: a small file may hold gigabytes
            return large
        if image.mode in ("I", "F"):
            reason = "it has numbers of 32 bits instead of shades; save it with 8 or 16 bits"
            return RowError(RowErrorCode.INVALID_IMAGE, f"input '{name}' cannot be taken: {reason}")
        image = operations.exif_transpose(image)
        if image.mode.startswith("I;16"):  # converting would clip values at 255 and make the image white
            image = pillow.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
        return image.convert("RGB")
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        return large
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds of exceptions for damaged images
        return RowError(RowErrorCode.INVALID_IMAGE, f"input '{name}' is not an image: {plain_sentence(error)}")


def _open_sound(value: Any, rules: AccessRules, rate: int | None) -> Any:
    if rate is None:
        return RowError(RowErrorCode.WRONG_TYPE, "input 'audio': the model does not hear sounds")
    if isinstance(value, bytes):
        decoded = decode_sound(value, rate, max_seconds=rules.max_audio_seconds)
        return decoded if isinstance(decoded, RowError) or np.isfinite(decoded).all() else _NOT_FINITE
    found = rate
    if isinstance(value, Mapping):
        array, said = value.get("array", value.get("raw")), value.get("sampling_rate")
        if isinstance(said, float) and said.is_integer():  # as data frames write whole numbers
            said = int(said)
        if array is None or not isinstance(said, int) or isinstance(said, bool):
            message = "input 'audio' must be a path, bytes, samples, or an object with 'array' and 'sampling_rate'"
            return RowError(RowErrorCode.WRONG_TYPE, message)
        value, found = array, said
    try:
        samples = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        return RowError(RowErrorCode.WRONG_TYPE, "input 'audio': its samples are not numbers")
    if not samples.size or samples.ndim not in (1, 2):
        return RowError(RowErrorCode.WRONG_TYPE, "input 'audio' must be one list of samples, or one for each channel")
    if not np.isfinite(samples).all():
        return _NOT_FINITE
    resampled = impossible_rate(found) or too_long(samples, found, rules.max_audio_seconds)
    return resampled or resample(samples, found, rate)
