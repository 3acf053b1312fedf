"""The HTTP client that the command line and the `stoker` package drive Stoker with.

`http_client` has a method for each route; `connection` and `event_stream` survive restarts of the API;
`inference_paths` and `training_paths` bring a spec's files to the API; `plain_data` reads specs from JSON and YAML.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_MOVED = ("TERMINAL_STATES", "ApiError", "Json", "ResultFormat", "ServiceUnavailable", "StokerClient")
"""What this module had when it was a file. These names go with the next release."""


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    warnings.warn(
        f"scheduler.client.{name} goes with the next release; use stoker.Client and what it raises and returns",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(f"{__name__}.http_client"), name)
