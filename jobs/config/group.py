"""The base of all groups of settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SettingsGroup(BaseModel):
    """A group of related settings, each with a default. Names of times and sizes contain the unit."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
