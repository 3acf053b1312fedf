"""The settings of a process of ours as environment variables, so that its children read the very same."""

from __future__ import annotations

import os

import orjson

from jobs.child_modules import with_our_packages
from jobs.config.settings import Settings


def settings_environment(settings: Settings) -> dict[str, str]:
    """Every setting that was made, so that a child reads the very same; the client's own stay out.

    The import path goes along, so that the child runs this very package, installed or not.
    """
    made = settings.model_dump(mode="json", exclude={"api_key", "url"}, exclude_unset=True)
    variables = {
        f"STOKER_{name.upper()}": value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in made.items()
    }
    path = with_our_packages({"PYTHONPATH": os.environ.get("PYTHONPATH", "")})
    return {**variables, **path}
