"""All settings, read from `STOKER_*` variables, then `stoker.toml`, then the defaults. Only this module reads them."""

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
from jobs.config.packed_attention import PackedAttention
from jobs.config.times import LeaseTimes, RetentionTimes, WebhookTimes
from jobs.specs.needs import Labels


class ApiAddress(Locations):
    """The address of the API, and the key that its clients send."""

    host: str = "127.0.0.1"
    """Address that the API binds to."""
    port: int = Field(default=8470, ge=0, le=65535)
    """TCP port of the API; 0 for any free port."""
    api_processes: int = Field(default=1, ge=1, le=64)
    """Number of processes that serve the API on its port. With 1, the scheduler's process serves it too."""
    url: str = ""
    """URL that clients use for the API; empty for the one in the data directory's `url` file, or http://127.0.0.1:<port>."""
    api_key: SecretStr = SecretStr("")
    """API key that clients send; empty for the one in the data directory's `local.key`."""


class ApiLimits(SettingsGroup):
    """Limits of what the API receives, and of how long it waits for a client."""

    max_upload_bytes: int = Field(default=20 * 2**30, gt=0)
    """Maximum size of an uploaded file."""
    connections: int = Field(default=1000, ge=1)
    """Maximum number of simultaneous connections to an API process, but at most a third of the files that the process
    may open; further connections get a 503."""
    request_seconds: float = Field(default=20.0, gt=0)
    """Time in which a client must send the request line and the headers."""
    client_idle_seconds: float = Field(default=60.0, gt=0)
    """A client that sends no part of a request body for this long gets a 408. A client that reads no part of a response
    for ten times as long is disconnected."""
    key_uploads: int = Field(default=8, ge=1)
    """Maximum number of simultaneous uploads of one API key to an API process; further uploads wait."""


class SlotSettings(SettingsGroup):
    """The slots of a host, the models that its runners keep loaded, and the work that they claim."""

    slots: int = Field(default=0, ge=0)
    """With GPUs, the maximum number to use (0 for all). Without GPUs, the number of CPU slots (0 for one per two cores,
    but at least one)."""
    slot_threads: int = Field(default=0, ge=0)
    """CPU threads of one operation on a slot; 0 to divide the host's cores among its slots."""
    encode_threads: int = Field(default=0, ge=0)
    """Threads of a slot that decode images, audio and videos and prepare them for the model; 0 for the number of the
    slot's CPU threads, minus one for a GPU slot."""
    host_name: str = ""
    """Name of this host in slot ids; empty for the machine's host name."""
    labels: Labels = Field(default=[])
    """Labels of this host, which jobs may ask for in `needs.labels`."""
    warm_models: int = Field(default=2, ge=1)
    """Maximum number of models that a runner keeps loaded."""
    chunk_seconds: float = Field(default=2.0, gt=0)
    """Duration of the work that a runner claims at once, estimated from its measured speed."""
    packed_attention: PackedAttention = PackedAttention.AUTO
    """Whether text encoders compute batches without padding: `auto` on GPUs in bfloat16 or float16, `on` everywhere,
    `off` nowhere. Models that fail a test of this at load are padded."""


class Settings(
    ApiAddress, ApiLimits, AccessRules, SlotSettings, LeaseTimes, WebhookTimes, RetentionTimes, BaseSettings
):
    """All settings. Create it once, at the start of a process.

    It inherits from all groups: a function declares only the group that it needs, and receives this object.
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
        """The sources in order: arguments, environment, `stoker.toml` (`$STOKER_CONFIG` or the working directory's)."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config_path())

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """`STOKER_*` variables in the environment that match no setting; they are probably misspelled."""
        known = {f"STOKER_{name.upper()}" for name in cls.model_fields} | {"STOKER_CONFIG", "STOKER_PYTHON"}
        return sorted(name for name in os.environ if name.startswith("STOKER_") and name.upper() not in known)
