"""The command and the environment that run one of Stoker's modules as a child process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import jobs

_PACKAGE_PARENT = str(Path(jobs.__file__).resolve().parent.parent)


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs one of Stoker's modules. With `-P`, a folder `jobs` or `worker` in the working directory
    is not imported in place of Stoker's package."""
    return [sys.executable, "-P", "-m", module, *arguments]


def with_our_packages(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with a `PYTHONPATH` from which a child imports the same packages as this process."""
    paths = [_PACKAGE_PARENT, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
