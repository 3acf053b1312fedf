"""What jobs and projects may use on this host, and how large it may be."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from jobs.config.catalogue import Catalogue
from jobs.config.group import SettingsGroup
from jobs.config.limits import Limits
from jobs.config.locations import Locations


class RowLimits(SettingsGroup):
    """How large a row of an input may be. A larger one becomes a row error and does not end its job."""

    max_row_bytes: int = Field(default=16 * 2**20, gt=0)
    """Longest line or row of an input; a longer one becomes a row error."""
    max_image_pixels: int = Field(default=64_000_000, gt=0)
    """Most pixels of an image in a row, checked before it is decoded; a larger one becomes a row error."""
    max_audio_seconds: float = Field(default=4 * 3600, gt=0)
    """Longest sound of a row; a longer one becomes a row error."""


class AccessRules(RowLimits, Locations):
    """What jobs may read, write and run, and how much of it a project may use.

    The locations are part of it because no job may name Stoker's own files.
    """

    input_roots: list[Path] = Field(default=[])
    """Directories that job inputs and local models may lie in; empty: only uploads, hub ids. `stoker up`: `/`."""
    output_roots: list[Path] = Field(default=[])
    """Directories that output files may be written to; empty: only artifacts. `stoker up` sets `/`."""
    input_urls: list[str] = Field(default=[])
    """URL prefixes (`s3://bucket/folder`) that job inputs may be read from with this host's credentials; an input root
    `/` allows all of them."""
    code_roots: list[Path] = Field(default=[])
    """Directories whose Python files a training's `module` may name, and so run; empty: none. `stoker up` sets the
    current directory."""
    trusted_remote_code: list[str] = Field(default=[])
    """Models that may bring their own code (`trust_remote_code`)."""
    models: Catalogue = Field(default={})
    """Names that clients may call models by, `[models.NAME]` tables of `stoker.toml`: `model`, and perhaps `task`,
    `dtype`, `parameters`."""
    any_model: bool = False
    """Whether a batch's lines may name any folder or hub id, besides the catalogue. `stoker up` sets it."""
    max_dataset_bytes: int = Field(default=100 * 2**30, gt=0)
    """Largest data set, from the hub or a folder, packed and unpacked, that is fetched and converted into this host's
    cache of data sets."""
    batch_lines: int = Field(default=1_000_000, ge=1)
    """Most requests of one batch file."""
    projects: Limits = Field(default={})
    """What each project may use, `[projects.NAME]` tables of `stoker.toml`: `queued_rows`, `upload_bytes`,
    `requests_per_second`."""

    @field_validator("input_roots", "output_roots", "code_roots")
    @classmethod
    def _resolved(cls, value: list[Path]) -> list[Path]:
        return [path.expanduser().resolve() for path in value]
