"""How one of our modules is run as a child process: its command, and an environment in which it finds our packages."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import jobs

_PACKAGE_PARENT = str(Path(jobs.__file__).resolve().parent.parent)


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules. `-P`: a folder called `jobs` or `worker` in the working directory must
    not be taken for our package."""
    return [sys.executable, "-P", "-m", module, *arguments]


def with_our_packages(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a child imports the very packages that run here, installed or not."""
    paths = [_PACKAGE_PARENT, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
