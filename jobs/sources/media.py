"""Bring images, sounds and films from a table's cell into the form that transformers' pipelines take."""

from __future__ import annotations

import importlib
import io
from typing import Any

from jobs.errors import InvalidInput
from jobs.rows import RowError

IMAGE_INPUTS = frozenset({"image", "image_pair"})
MEDIA_INPUTS = IMAGE_INPUTS | {"audio", "video"}


def media_value(name: str, value: Any) -> Any:
    """What the pipeline gets for one cell of an input such as `image`.

    Data sets keep media as `{"bytes": ..., "path": ...}`. Encoded images become `PIL.Image` objects, whose pixels are
    decoded where they are used; encoded sounds and films stay bytes, which their pipelines decode. A path or URL,
    and anything else, passes as it is.

    Args:
        name: the task's name of the input.
        value: the cell, not None.

    Returns:
        The value for the pipeline, or a RowError where an image is not one.

    Raises:
        InvalidInput: there are encoded images and this host has no Pillow.
    """
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if name not in IMAGE_INPUTS or not isinstance(value, bytes):
        return value
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError as error:
        message = f"input.columns.{name}: encoded images need the package Pillow on the worker's host"
        raise InvalidInput(message, param=f"input.columns.{name}") from error
    try:
        return pillow.open(io.BytesIO(value))
    except (OSError, pillow.DecompressionBombError) as error:
        return RowError("invalid_image", f"input '{name}' is not an image: {error}")
