"""Open images, sounds and videos of rows for pipelines: from inline data, or from files under the input roots.

A pipeline would open any path, fetch any URL and treat any other text as base64, so it never gets such texts.
"""

from __future__ import annotations

import importlib
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.access.paths import resolve_input_path
from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError, RowErrorCode
from jobs.data.sources.media import MEDIA_BEGINNINGS, MEDIA_INPUTS, decode_base64, is_data_url, may_be_sound
from jobs.errors import UserError
from jobs.messages import short
from jobs.specs.bounds import LONGEST_NAME_BYTES, LONGEST_PATH_BYTES
from jobs.specs.packages import task_need
from worker.models.media.images import open_image
from worker.models.media.sounds import open_sound

_SHOWN = 100  # characters of the user's own text in a message


def check_packages(task: str) -> None:
    """Make sure that this host has the packages that a task needs.

    Raises:
        InvalidSpec: A package is missing or does not work on this host.
    """
    need = task_need(task)
    if need is None:
        return
    try:
        importlib.import_module(need.package.module)  # a build for another torch version fails here
    except (ImportError, RuntimeError, OSError) as error:
        raise need.missing_package_error("this worker lacks or cannot load") from error


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
        return open_sound(value, rules, rate)
    if name == "video":
        return (
            value
            if isinstance(value, str | bytes)
            else RowError(RowErrorCode.WRONG_TYPE, "input 'video' must be a path or data")
        )
    return open_image(name, value, rules)


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
    if is_data_url(value):
        return _from_data_url(name, value)
    if "://" in value[:_SHOWN] and not value.startswith("file://"):
        return RowError(RowErrorCode.URL_NOT_ALLOWED, f"input '{name}' is a URL; give a path, or the data itself")
    data = _from_base64(value)
    if data is not None:
        return data
    shown = short(value, _SHOWN)
    longest = max(map(len, value.split("/")))
    if len(value) >= LONGEST_PATH_BYTES or longest > LONGEST_NAME_BYTES or "\0" in value:
        message = f"input '{name}': '{shown}' is neither an existing file nor base64 of a known kind of image or sound"
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
    if not kind.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(data)
    decoded = decode_base64(urllib.parse.unquote(data))
    return wrong if decoded is None else decoded


def _from_base64(value: str) -> bytes | None:
    """Decode base64 without a `data:` prefix; None for a text that could also be the name of a file."""
    data = decode_base64(value)
    if data is None or data.startswith(MEDIA_BEGINNINGS):
        return data
    # What is longer than a name may be, and all base64, is data. What may be a long path nevertheless is so only where
    # it begins as a sound does.
    is_path_like = value.startswith("/") or "-" in value or "_" in value
    return data if len(value) > LONGEST_NAME_BYTES and (may_be_sound(data) or not is_path_like) else None
