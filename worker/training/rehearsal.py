"""The old place of `rehearse`, which is in `stoker.training`. It goes with the next release."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

warnings.warn(
    "worker.training.rehearsal will be removed in the next release; import rehearse from stoker.training",
    DeprecationWarning,
    stacklevel=2,
)


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("stoker.training"), name)
