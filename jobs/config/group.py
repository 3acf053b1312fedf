"""What the groups of settings share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SettingsGroup(BaseModel):
    """Settings that belong together, each with its unit and default beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
