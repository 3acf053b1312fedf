"""The locations of the data directory, the database, Redis and the artifact store."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from pydantic import field_validator

from jobs.config.group import SettingsGroup

_LONGEST_SOCKET_PATH = 100  # bytes; the kernel takes 108 with the final zero


class Locations(SettingsGroup):
    """Settings for the locations of Stoker's data and services."""

    data_dir: Path = Path("~/.stoker")
    """Directory for the database, Redis, artifacts, logs and the local key of an embedded stack."""
    database_url: str = ""
    """SQLAlchemy URL, such as `postgresql+psycopg://...`; empty for SQLite in the data directory."""
    redis_url: str = ""
    """URL with `redis://`, `rediss://` or `redis+socket://`; empty for the embedded server's socket."""
    store_url: str = ""
    """fsspec URL of the artifact store (`s3://...`, `gs://...`, a path); empty for `<data dir>/store`."""

    @field_validator("data_dir", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if value == "":  # from an unset variable; as a path it would be the working directory
            raise ValueError("must not be empty")
        return value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def resolved_database_url(self) -> str:
        """`database_url`, or the URL of the embedded SQLite file."""
        return self.database_url or f"sqlite:///{self.data_dir / 'stoker.db'}"

    @property
    def redis_socket(self) -> Path:
        """Socket of the embedded Redis: in the data directory, or in /tmp if that path is too long for a socket."""
        inside = self.data_dir / "redis.sock"
        if len(os.fsencode(inside)) <= _LONGEST_SOCKET_PATH:
            return inside
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"stoker-{os.getuid()}-{digest}" / "redis.sock"

    @property
    def resolved_redis_url(self) -> str:
        """`redis_url`, or the embedded server's socket, in Celery's form."""
        return self.redis_url or f"redis+socket://{self.redis_socket}"

    @property
    def resolved_store_url(self) -> str:
        """`store_url`, or the folder in the data directory."""
        return self.store_url or str(self.data_dir / "store")

    @property
    def job_models_path(self) -> Path:
        """Folder for the models of training jobs that inference jobs on this host have used."""
        return self.data_dir / "job-models"

    @property
    def training_path(self) -> Path:
        """Folder for prepared data of this host's trainings, and for their output until it is in the artifact store."""
        return self.data_dir / "training"

    @property
    def local_key_path(self) -> Path:
        """File with the local API key of the embedded stack (mode 0600)."""
        return self.data_dir / "local.key"

    @property
    def config_path(self) -> Path:
        """The file that settings are read from, which need not exist; it may contain passwords of databases."""
        return config_path()

    @property
    def url_path(self) -> Path:
        """File to which a running API writes its URL."""
        return self.data_dir / "url"


def config_path() -> Path:
    """The file that settings are read from: `$STOKER_CONFIG`, or `stoker.toml` in the working directory."""
    return Path(os.environ.get("STOKER_CONFIG", "stoker.toml")).absolute()
