"""Settings for what jobs and projects may use on this host, and for size limits of inputs."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from jobs.config.catalogue import Catalogue
from jobs.config.group import SettingsGroup
from jobs.config.limits import Limits
from jobs.config.locations import Locations


class RowLimits(SettingsGroup):
    """Size limits of one input row. A larger row becomes a row error and does not end its job."""

    max_row_bytes: int = Field(default=16 * 2**20, gt=0)
    """Maximum size of a line or row of an input."""
    max_image_pixels: int = Field(default=64_000_000, gt=0)
    """Maximum number of pixels of an image in a row, checked before the image is decoded."""
    max_audio_seconds: float = Field(default=4 * 3600, gt=0)
    """Maximum duration of the audio of a row."""


class AccessRules(RowLimits, Locations):
    """What jobs may read, write and run, and the limits of each project.

    It includes the locations because no job may name Stoker's own files.
    """

    input_roots: list[Path] = Field(default=[])
    """Directories for job inputs and local models; if empty, only uploads and hub ids. `stoker up` sets `/`."""
    output_roots: list[Path] = Field(default=[])
    """Directories that output files may be written to; if empty, only artifacts. `stoker up` sets `/`."""
    input_urls: list[str] = Field(default=[])
    """URL prefixes (`s3://bucket/folder`) that job inputs may be read from with this host's credentials. The input root
    `/` allows all URLs."""
    code_roots: list[Path] = Field(default=[])
    """Directories of Python files that a training may run as its `module`; if empty, none. `stoker up` sets the current
    directory."""
    trusted_remote_code: list[str] = Field(default=[])
    """Models whose own code may be run (`trust_remote_code`)."""
    models: Catalogue = Field(default={})
    """Model names for clients, from the tables `[models.NAME]` of `stoker.toml`: `model`, and optionally `task`,
    `dtype`, `engine`, `parameters`."""
    any_model: bool = False
    """Whether lines of a batch may name any folder or hub id, not only names of the catalogue. `stoker up` sets it."""
    max_dataset_bytes: int = Field(default=100 * 2**30, gt=0)
    """Maximum size, compressed and uncompressed, of a data set from the hub or a folder that is converted into this
    host's cache of data sets."""
    batch_lines: int = Field(default=1_000_000, ge=1)
    """Maximum number of requests in one batch file."""
    projects: Limits = Field(default={})
    """Limits of each project, from the tables `[projects.NAME]` of `stoker.toml`: `queued_rows`, `upload_bytes`,
    `requests_per_second`, `weight`, `slots`, `gpu_hours`."""

    @field_validator("input_roots", "output_roots", "code_roots")
    @classmethod
    def _resolved(cls, value: list[Path]) -> list[Path]:
        return [path.expanduser().resolve() for path in value]
