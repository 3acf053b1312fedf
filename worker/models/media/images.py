"""Decode images to RGB."""

from __future__ import annotations

import importlib
import io
from typing import Any

import numpy as np

from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError, RowErrorCode
from worker.device import is_out_of_memory


def open_image(name: str, value: Any, rules: AccessRules) -> Any:
    """Convert the image of a row to RGB.

    Args:
        name: The task's name for the input.
        value: The bytes of an image file, or an image.
        rules: Their `max_image_pixels` limits the size.

    Returns:
        The image, turned as its EXIF data says, or a RowError.
    """
    # Imported by name, since type checkers complain if it is not installed.
    pillow: Any = importlib.import_module("PIL.Image")
    operations = importlib.import_module("PIL.ImageOps")
    if not isinstance(value, bytes | pillow.Image):
        return RowError(RowErrorCode.WRONG_TYPE, f"input '{name}' must be a path, base64 or the bytes of an image")
    limit = rules.max_image_pixels
    large = RowError(
        RowErrorCode.ROW_TOO_LARGE, f"input '{name}' has more than {limit} pixels (setting max_image_pixels)"
    )
    if pillow.MAX_IMAGE_PIXELS is not None:  # Pillow raises at twice its own limit, which may be below the setting
        pillow.MAX_IMAGE_PIXELS = max(pillow.MAX_IMAGE_PIXELS, limit)
    try:
        image = pillow.open(io.BytesIO(value)) if isinstance(value, bytes) else value
        if image.width * image.height > limit:  # before the pixels are decoded: a small file may hold gigabytes
            return large
        if image.format == "EPS":  # Pillow would run Ghostscript
            reason = "EPS files are programs; convert it to PNG"
            return RowError(RowErrorCode.INVALID_IMAGE, f"input '{name}' cannot be used: {reason}")
        if image.mode in ("I", "F"):
            reason = "its pixels are numbers of 32 bits; save it with 8 or 16 bits"
            return RowError(RowErrorCode.INVALID_IMAGE, f"input '{name}' cannot be used: {reason}")
        if image is value:
            image = operations.exif_transpose(image)
        else:
            operations.exif_transpose(image, in_place=True)  # without a copy of the pixels
        if image.mode.startswith("I;16"):  # converting would clip values at 255 and make the image white
            image = pillow.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
        return image if image.mode == "RGB" else image.convert("RGB")
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        return large
    except pillow.UnidentifiedImageError:
        reason = "it is empty" if not value else "the file is damaged, or of an unknown kind"
        return RowError(RowErrorCode.INVALID_IMAGE, f"input '{name}' is not an image: {reason}")
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Decoders raise many kinds of exceptions for damaged images, whose words are for programmers.
        reason = "the file ends too early" if "truncated" in str(error) else "the file is damaged"
        return RowError(RowErrorCode.INVALID_IMAGE, f"input '{name}' cannot be read as an image: {reason}")
