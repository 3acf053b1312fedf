"""Convert a pipeline's output to a JSON value: arrays become lists, images become PNG data URLs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from jobs.data.rows import RowError
from worker.models.task_model import NOT_FINITE


def json_value(output: Any) -> Any | RowError:
    """Convert a pipeline's output to a JSON value, or to a row error if it contains a NaN or an infinity."""
    try:
        return _converted(output)
    except _NotFinite:
        return NOT_FINITE


class _NotFinite(Exception):
    """A number is NaN or infinite."""


def _converted(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("type") == "image":  # an image of a chat, which the row contains anyway
        return {"type": "image"}
    if isinstance(value, Mapping):
        return {str(name): _converted(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        if value and all(type(inner) is float for inner in value):
            if not math.isfinite(sum(value)) and not all(map(math.isfinite, value)):
                raise _NotFinite
            return list(value)
        return [_converted(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        return _converted(value.float().tolist() if value.dtype is torch.bfloat16 else value.tolist())
    if isinstance(value, np.generic | np.ndarray):
        return _converted(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        raise _NotFinite
    if hasattr(value, "save") and hasattr(value, "getbbox"):  # an image
        stream = io.BytesIO()
        value.save(stream, format="PNG")
        return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return value
