"""How a process of ours is started: the command of a module, and settings as environment variables."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import orjson

import scheduler
from jobs.config.settings import Settings

_PACKAGE_PARENT = str(Path(scheduler.__file__).resolve().parent.parent)


def module_command(module: str) -> list[str]:
    """The command that runs one of our modules. `-P`: a folder called `jobs` or `worker` where the user happens to
    stand must not be taken for our package."""
    return [sys.executable, "-P", "-m", module]


def settings_environment(settings: Settings) -> dict[str, str]:
    """Every setting that was made, so that a child reads the very same; the client's own stay out.

    The import path goes along, so that the child runs this very package, installed or not.
    """
    made = settings.model_dump(mode="json", exclude={"api_key", "url"}, exclude_unset=True)
    variables = {
        f"STOKER_{name.upper()}": value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in made.items()
    }
    paths = [_PACKAGE_PARENT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**variables, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
