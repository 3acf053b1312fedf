"""The old place of the types of a training module, `stoker.training`. It goes with the next release."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

warnings.warn(
    "worker.training.module will be removed in the next release; import Parts, Phase and Setup from stoker.training",
    DeprecationWarning,
    stacklevel=2,
)


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("stoker.training"), name)
