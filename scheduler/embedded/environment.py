"""Settings as environment variables, so that child processes read the same settings."""

from __future__ import annotations

import os

import orjson

from jobs.child_modules import with_our_packages
from jobs.config.settings import Settings


def settings_environment(settings: Settings) -> dict[str, str]:
    """Environment variables for a child process: every explicit setting except those of the client.

    They include the import path, so that the child imports the same package, installed or not.
    """
    made = settings.model_dump(mode="json", exclude={"api_key", "url"}, exclude_unset=True)
    variables = {
        f"STOKER_{name.upper()}": value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in made.items()
    }
    path = with_our_packages({"PYTHONPATH": os.environ.get("PYTHONPATH", "")})
    return {**variables, **path}
