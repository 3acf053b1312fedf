"""The only reader of the environment: `STOKER_*` variables, then `stoker.toml`, then the defaults of the groups."""

from __future__ import annotations

import os

from pydantic import Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from jobs.config.access_rules import AccessRules
from jobs.config.group import SettingsGroup
from jobs.config.locations import Locations, config_path
from jobs.config.times import LeaseTimes, RetentionTimes, WebhookTimes


class ApiAddress(Locations):
    """Where the API is, and the key that its clients send."""

    host: str = "127.0.0.1"
    """Address the API binds."""
    port: int = Field(default=8470, ge=0, le=65535)
    """TCP port of the API; 0 takes a free one."""
    url: str = ""
    """Where clients find the API; empty: what the data directory's `url` file says, else http://127.0.0.1:<port>."""
    api_key: SecretStr = SecretStr("")
    """The key clients send; empty: the data directory's `local.key`."""


class ApiLimits(SettingsGroup):
    """How much the API receives, and how long it waits for a client."""

    max_upload_bytes: int = Field(default=20 * 2**30, gt=0)
    """Largest uploaded file."""
    connections: int = Field(default=1000, ge=1)
    """Most connections to the API at once, or a third of the files that the process may open where that is less;
    further ones are answered 503."""
    request_seconds: float = Field(default=20.0, gt=0)
    """Time that a client has to send a request's line and headers."""
    client_idle_seconds: float = Field(default=60.0, gt=0)
    """A client that sends nothing of a request's body for this long gets a 408; one that takes nothing of an answer for
    ten times as long is cut off."""
    key_uploads: int = Field(default=8, ge=1)
    """Uploads of one API key that are received at once; further ones wait for their turn."""


class SlotSettings(SettingsGroup):
    """The slots of a host, and what its runners keep and claim."""

    slots: int = Field(default=0, ge=0)
    """CPU slots where there is no GPU (0: one for each two cores, at least one), or the most GPUs to use (0: all)."""
    slot_threads: int = Field(default=0, ge=0)
    """CPU threads of one operation on a slot; 0: the host's cores, divided among its slots."""
    host_name: str = ""
    """Name of this host in slot ids; empty: the machine's own."""
    warm_models: int = Field(default=2, ge=1)
    """Models a runner keeps loaded."""
    chunk_seconds: float = Field(default=2.0, gt=0)
    """Work a runner claims at once, at the speed it sees."""


class Settings(
    ApiAddress, ApiLimits, AccessRules, SlotSettings, LeaseTimes, WebhookTimes, RetentionTimes, BaseSettings
):
    """Every setting. Build it once at a process's start.

    It is each of the groups that it inherits: a function names in its signature the group that it needs, and is given
    the settings.
    """

    model_config = SettingsConfigDict(env_prefix="STOKER_", extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library passes it by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then `stoker.toml` (`$STOKER_CONFIG`, else the working directory's)."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config_path())

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """`STOKER_*` variables of the environment that are no setting: most likely misspelt ones."""
        known = {f"STOKER_{name.upper()}" for name in cls.model_fields} | {"STOKER_CONFIG", "STOKER_PYTHON"}
        return sorted(name for name in os.environ if name.startswith("STOKER_") and name.upper() not in known)
