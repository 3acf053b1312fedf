"""Where Stoker keeps its things: the data directory, the database, Redis, the artifact store."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from pydantic import field_validator

from jobs.config.group import SettingsGroup

_LONGEST_SOCKET_PATH = 100  # bytes; the kernel takes 108 with the final zero


class Locations(SettingsGroup):
    """Where things are."""

    data_dir: Path = Path("~/.stoker")
    """Database, Redis, artifacts, logs and the local key of an embedded stack."""
    database_url: str = ""
    """SQLAlchemy URL; empty: SQLite in the data directory. PostgreSQL: `postgresql+psycopg://...`."""
    redis_url: str = ""
    """`redis://`, `rediss://` or `redis+socket://`; empty: the embedded server's socket in the data directory."""
    store_url: str = ""
    """fsspec URL of the artifact store (`s3://...`, `gs://...`, a path); empty: `<data dir>/store`."""

    @field_validator("data_dir", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if value == "":  # of a variable that is not set; it would mean the working directory
            raise ValueError("must not be empty")
        return value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def resolved_database_url(self) -> str:
        """`database_url`, or the embedded SQLite file."""
        return self.database_url or f"sqlite:///{self.data_dir / 'stoker.db'}"

    @property
    def redis_socket(self) -> Path:
        """Socket of the embedded Redis: in the data directory, or, where that path is too long for one, in /tmp."""
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
        """Where this host keeps the models of training jobs that inference jobs here have used."""
        return self.data_dir / "job-models"

    @property
    def training_path(self) -> Path:
        """Where this host's trainings write until the artifact store has it, and keep prepared data."""
        return self.data_dir / "training"

    @property
    def local_key_path(self) -> Path:
        """Where the embedded stack keeps its local API key (mode 0600)."""
        return self.data_dir / "local.key"

    @property
    def config_path(self) -> Path:
        """The file that settings are read from, where there is one; it may hold the passwords of databases."""
        return config_path()

    @property
    def url_path(self) -> Path:
        """Where a running API writes the URL it serves at."""
        return self.data_dir / "url"


def config_path() -> Path:
    """The file that settings are read from: `$STOKER_CONFIG`, or `stoker.toml` in the working directory."""
    return Path(os.environ.get("STOKER_CONFIG", "stoker.toml")).absolute()
