"""The HTTP client that the command line and the `stoker` package use.

`http_client` has a method for each route; `connection` and `event_stream` survive restarts of the API;
`inference_paths` and `training_paths` make a spec's files available to the API; `plain_data` parses JSON and YAML.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_MOVED = ("TERMINAL_STATES", "ApiError", "Json", "ResultFormat", "ServiceUnavailable", "StokerClient")
"""Names that this package exported when it was one module. The next release removes them."""


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    warnings.warn(
        f"scheduler.client.{name} will be removed in the next release; use stoker.Client and the names of stoker",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(f"{__name__}.http_client"), name)
