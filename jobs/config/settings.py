"""The only reader of the environment: `STOKER_*` variables, then `stoker.toml`, then these defaults."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from jobs.config.activities import Activity
from jobs.config.addresses import PrivateHost
from jobs.config.catalogue import Catalogue
from jobs.config.limits import Limits

_LONGEST_SOCKET_PATH = 100  # bytes; the kernel takes 108 with the final zero


class Settings(BaseSettings):
    """Every setting, with its unit and default beside it. Build it once at a process's start and pass it down."""

    model_config = SettingsConfigDict(env_prefix="STOKER_", extra="forbid", frozen=True, validate_default=True)

    # -- where things are
    data_dir: Path = Path("~/.stoker")
    """Database, Redis, artifacts, logs and the local key of an embedded stack."""
    database_url: str = ""
    """SQLAlchemy URL; empty: SQLite in the data directory. PostgreSQL: `postgresql+psycopg://...`."""
    redis_url: str = ""
    """`redis://`, `rediss://` or `redis+socket://`; empty: the embedded server's socket in the data directory."""
    store_url: str = ""
    """fsspec URL of the artifact store (`s3://...`, `gs://...`, a path); empty: `<data dir>/store`."""

    # -- the API
    host: str = "127.0.0.1"
    """Address the API binds."""
    port: int = Field(default=8470, ge=0, le=65535)
    """TCP port of the API; 0 takes a free one."""
    url: str = ""
    """Where clients find the API; empty: what the data directory's `url` file says, else http://127.0.0.1:<port>."""
    api_key: SecretStr = SecretStr("")
    """The key clients send; empty: the data directory's `local.key`."""
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

    projects: Limits = {}
    """What each project may use, `[projects.NAME]` tables of `stoker.toml`: `queued_rows`, `upload_bytes`,
    `requests_per_second`."""

    # -- what may be touched
    input_roots: list[Path] = []
    """Directories that job inputs and local models may lie in; empty: only uploads, hub ids. `stoker up`: `/`."""
    output_roots: list[Path] = []
    """Directories that output files may be written to; empty: only artifacts. `stoker up` sets `/`."""
    input_urls: list[str] = []
    """URL prefixes (`s3://bucket/folder`) that job inputs may be read from with this host's credentials; an input root
    `/` allows all of them."""
    code_roots: list[Path] = []
    """Directories whose Python files a training's `module` may name, and so run; empty: none. `stoker up` sets the
    current directory."""
    trusted_remote_code: list[str] = []
    """Models that may bring their own code (`trust_remote_code`)."""
    max_row_bytes: int = Field(default=16 * 2**20, gt=0)
    """Longest line or row of an input; a longer one becomes a row error."""
    max_image_pixels: int = Field(default=64_000_000, gt=0)
    """Most pixels of an image in a row, checked before it is decoded; a larger one becomes a row error."""
    max_audio_seconds: float = Field(default=4 * 3600, gt=0)
    """Longest sound of a row; a longer one becomes a row error."""
    max_dataset_bytes: int = Field(default=100 * 2**30, gt=0)
    """Largest data set, from the hub or a folder, packed and unpacked, that is fetched and converted into this host's
    cache of data sets."""
    batch_lines: int = Field(default=1_000_000, ge=1)
    """Most requests of one batch file."""
    webhook_private_hosts: list[PrivateHost] = []
    """Host names, addresses and networks that webhooks may go to although they are not public; empty: none."""

    # -- models
    models: Catalogue = {}
    """Names that clients may call models by, `[models.NAME]` tables of `stoker.toml`: `model`, and perhaps `task`,
    `dtype`, `parameters`."""
    any_model: bool = False
    """Whether a batch's lines may name any folder or hub id, besides the catalogue. `stoker up` sets it."""

    # -- slots and runners
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

    # -- leases and time
    lease_seconds: float = Field(default=15.0, gt=0)
    """Life of a lease between heartbeats; a keeper renews it each quarter of this."""
    doorbell_seconds: float = Field(default=5.0, gt=0)
    """A granted lease that is not activated in this time is rung again."""
    doorbell_rings: int = Field(default=3, ge=1)
    """Unanswered rings after which the lease is expired and its slot set offline."""
    preemptable_seconds: float = Field(default=300.0, ge=0)
    """How long a training has its slots at least before a job of the class `high` may have them."""
    slot_seconds: float = Field(default=15.0, gt=0)
    """A slot whose worker is silent for this long is offline."""
    sweep_seconds: float = Field(default=1.0, gt=0)
    """How often the reaper looks for dead leases, and the service's longest wait between two looks at the queue."""
    leader_seconds: float = Field(default=5.0, gt=0)
    """Life of the scheduler's leader lock between renewals."""
    grace_seconds: float = Field(default=10.0, gt=0)
    """Time a runner has to finish its chunk after a stop, before it is killed."""
    stall_seconds: float = Field(default=300.0, gt=0)
    """A runner that makes no progress with a chunk for this long (read, encode, forward, decode) is killed and its
    chunk retried. Other work has a multiple of it: recording results twice, loading a model and a training's steps and
    evaluations three times, its start, checkpoints and saving six times; each has at least five times what it took."""
    stall_limits: dict[Activity, Annotated[float, Field(gt=0)]] = {}
    """Limits of their own in seconds, the table `[stall_limits]` of `stoker.toml`: `load`, `read`, `encode`, `forward`,
    `decode`, `commit`, and of a training `start`, `step`, `evaluation`, `checkpoint`, `save`."""

    # -- retries
    chunk_crashes: int = Field(default=2, ge=1)
    """Runner deaths on one chunk before it is cut in two to find the row that causes them."""
    chunk_attempts: int = Field(default=5, ge=1)
    """Tries of a chunk that fails by an error (not a death) before its rows become row errors."""
    job_crashes: int = Field(default=5, ge=1)
    """Runner deaths of one job outside any chunk, with no chunk recorded between, before the job fails."""
    retry_seconds: float = Field(default=1.0, gt=0)
    """First backoff; doubles each time, with jitter."""
    retry_max_seconds: float = Field(default=60.0, gt=0)
    """Longest backoff."""

    # -- webhooks
    webhook_timeout_seconds: float = Field(default=10.0, gt=0)
    """Time that a receiver has to answer a delivery, connecting included."""
    webhook_attempts: int = Field(default=18, ge=1)
    """Tries of a delivery before it is given up; with the delays below, four to eight hours."""
    webhook_retry_seconds: float = Field(default=5.0, gt=0)
    """First delay between two tries; doubles each time, with jitter."""
    webhook_retry_max_seconds: float = Field(default=3600.0, gt=0)
    """Longest delay between two tries."""

    # -- retention
    upload_days: float = Field(default=30.0, gt=0)
    """Uploaded files are deleted after this many days, unless a live job reads them."""
    job_days: float = Field(default=0.0, ge=0)
    """Ended jobs and their results are deleted after this many days; 0 keeps them."""
    webhook_days: float = Field(default=30.0, gt=0)
    """Deliveries of webhooks are deleted from the log this many days after their end."""
    log_lines: int = Field(default=10_000, ge=0)
    """Log lines kept for one lease; the rest is dropped, and that is said."""

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
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=_config_path())

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

    @field_validator("input_roots", "output_roots", "code_roots")
    @classmethod
    def _resolved(cls, value: list[Path]) -> list[Path]:
        return [path.expanduser().resolve() for path in value]

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """`STOKER_*` variables of the environment that are no setting: most likely misspelt ones."""
        known = {f"STOKER_{name.upper()}" for name in cls.model_fields} | {"STOKER_CONFIG", "STOKER_PYTHON"}
        return sorted(name for name in os.environ if name.startswith("STOKER_") and name.upper() not in known)

    # -- what follows from them

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
        return _config_path()

    @property
    def url_path(self) -> Path:
        """Where a running API writes the URL it serves at."""
        return self.data_dir / "url"


def _config_path() -> Path:
    return Path(os.environ.get("STOKER_CONFIG", "stoker.toml")).absolute()
