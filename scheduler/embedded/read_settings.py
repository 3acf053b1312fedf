"""Read the settings of a command, with every error as one sentence."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from jobs.config.settings import Settings
from jobs.errors import InvalidSpec
from jobs.messages import did_you_mean, first_fault


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Read settings from the given values, then the environment, then `stoker.toml`.

    Args:
        given: Setting name -> value; None means not given.

    Raises:
        InvalidSpec: A setting is not valid; the message names it.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        name, message = first_fault(error.errors())
        if error.errors()[0]["type"] == "extra_forbidden":
            hint = did_you_mean(name, Settings.model_fields)
            raise InvalidSpec(f"stoker.toml: there is no setting '{name}'{hint}", param=name) from error
        raise InvalidSpec(f"setting {name}: {message}", param=name) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"stoker.toml is not valid TOML: {error}") from error
    except SettingsError as error:
        raise InvalidSpec(f"cannot read the settings: {error}") from error
