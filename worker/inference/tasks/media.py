"""Images, sounds and films between rows and pipelines: opened under the input roots only, and back into JSON."""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from jobs.errors import UserError
from jobs.paths import resolve_input_path
from jobs.rows import RowError
from jobs.settings import Settings
from worker.device import one_line

MEDIA_TOKENS = {"image": 256, "image_pair": 256, "audio": 1024, "video": 4096}
"""What one of them is counted as when rows are packed into batches; text models' activations are a fair measure."""


def open_media(name: str, value: Any, settings: Settings) -> Any:
    """What a pipeline gets for a row's value.

    A path is opened here: a pipeline would open any path there is, and fetch any URL.

    Args:
        name: the task's name of the input.
        value: as the source gave it.
        settings: whose `input_roots` bound paths.

    Returns:
        An image, the bytes or samples of a sound, the path of a film; any other input as it is; or a RowError.
    """
    if name not in MEDIA_TOKENS:
        return value
    if isinstance(value, str) and not value.startswith("data:"):
        if "://" in value and not value.startswith("file://"):
            return RowError("url_not_allowed", f"input '{name}' is a URL; give a path, or the data itself")
        try:
            path = resolve_input_path(value, settings, param=name)
        except UserError as error:
            return RowError("forbidden_path", error.message)
        if not path.is_file():
            return RowError("missing_file", f"input '{name}': there is no file '{value}'")
        value = str(path)
        if name != "video":
            try:
                value = path.read_bytes()
            except OSError as error:
                return RowError("missing_file", f"input '{name}': '{path}' cannot be read: {error.strerror}")
    if name == "video" and not isinstance(value, str | bytes):
        return RowError("wrong_type", "input 'video' must be a path or a film's bytes")  # a list may hold URLs
    if name.startswith("image"):
        return _open_image(name, value)
    return _sound(value) if name == "audio" else value


def _open_image(name: str, value: Any) -> Any:
    # Pillow is optional: only tasks with images need it. By name, as type checkers miss it where it is not installed.
    pillow = importlib.import_module("PIL.Image")
    from transformers.image_utils import load_image

    try:
        image = load_image(pillow.open(io.BytesIO(value)) if isinstance(value, bytes) else value)
        image.load()
    except Exception as error:  # noqa: BLE001 - decoders of damaged images raise whatever they like
        return RowError("invalid_image", f"input '{name}' is not an image: {one_line(error)}")
    return image


def _sound(value: Any) -> Any:
    if isinstance(value, Mapping) and "array" in value:
        return {"raw": np.asarray(value["array"], dtype=np.float32), "sampling_rate": int(value["sampling_rate"])}
    return np.asarray(value, dtype=np.float32) if isinstance(value, (list, np.ndarray)) else value


def jsonable(value: Any) -> Any:
    """A pipeline's output as a JSON value: arrays become lists, images PNG data URLs."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        return value.float().tolist() if value.dtype is torch.bfloat16 else value.tolist()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if hasattr(value, "save") and hasattr(value, "getbbox"):
        stream = io.BytesIO()
        value.save(stream, format="PNG")
        return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return value
