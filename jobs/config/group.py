"""The base of all groups of settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SettingsGroup(BaseModel):
    """A group of related settings. Each setting has a default, and its unit is part of its name."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
