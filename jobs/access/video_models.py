"""Check the parameters of a job over videos against the configuration of its model. Does not use torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.errors import InvalidSpec

_FIXED = frozenset({"videomae", "vivit"})
"""The `model_type` of models with one vector for each position in time, so that they take one number of frames."""


def fixed_num_frames(config: Mapping[str, Any]) -> int | None:
    """The only number of frames that a model takes; None if it takes several.

    Args:
        config: The content of the model's config.json.
    """
    found = config.get("num_frames")
    return found if config.get("model_type") in _FIXED and isinstance(found, int) else None


def check_num_frames(config: Mapping[str, Any], requested: int | None) -> None:
    """Check the parameter `num_frames`.

    Args:
        config: The content of the model's config.json.
        requested: The job's parameter; None if it sets none.

    Raises:
        InvalidSpec: The model does not take this number of frames.
    """
    fixed = fixed_num_frames(config)
    if fixed is not None and requested not in (None, fixed):
        param = "parameters.num_frames"
        raise InvalidSpec(f"{param}: must be {fixed}, since the model takes no other number of frames", param=param)
