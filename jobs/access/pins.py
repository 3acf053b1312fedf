"""Pins: a record of the files that a job uses, made at its submission and compared by each runner before use.

If the weights in a model folder were replaced while a job runs, the job would use two models. So a change is an error,
as it is for inputs. A pin contains the size, the stamp (`jobs.access.stamps`) and a digest of each file that loading
may read. A request cannot wait for digests, so they are added when the job is planned, if the stamps are unchanged.

On the host that made the pin, sizes and stamps are compared. On another host the inodes differ, and a copy of the
folder has other times, so sizes and digests are compared there. The digest of a file of up to 64 MiB (configurations,
tokenizers) covers all bytes. That of a larger file (weights) covers blocks spread over the file, which detects other
weights but not a single flipped bit.

`jobs.ledger.job_pins` finds the files that a job's spec names.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from jobs.access.model_files import MOST_FILES, TooManyFiles, model_files
from jobs.access.stamps import file_stamp, is_same
from jobs.errors import InvalidModel, ServiceUnavailable, UserError
from jobs.messages import reason

_WHOLE_BYTES = 64 * 2**20  # maximum size of a file whose digest covers all bytes
_BLOCK_BYTES = 64 * 2**10
_NUM_BLOCKS = 64  # number of blocks that are read from a larger file
_MOST_DIGESTS = 4096  # number of digests that a process caches

Part = Literal["model", "processor", "module"]
"""The parts of a job that are pinned."""


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """The recorded state of one file."""

    name: str
    """Path of the file within the pinned folder, or its name if only this file was pinned."""
    num_bytes: int
    stamp: str
    """The result of `jobs.access.stamps.file_stamp`."""
    digest: str | None = None
    """Digest of the content; None if only size and stamp were recorded, as at submission."""


@dataclass(frozen=True, slots=True)
class PinnedFiles:
    """The pin of a file, or of the files in a folder that loading may read."""

    files: tuple[PinnedFile, ...]


@dataclass(frozen=True, slots=True)
class PinnedRevision:
    """The commit of a hub id, recorded by the first runner that resolves the id."""

    revision: str


Pin = PinnedFiles | PinnedRevision


@dataclass(frozen=True, slots=True)
class Pins:
    """The pins of everything that a job uses, except its input."""

    model: Pin | None = None
    processor: Pin | None = None
    module: Pin | None = None

    @classmethod
    def parse(cls, document: Mapping[str, Any] | None) -> Pins:
        """Read pins from the JSON document in a job's row or an order; None gives empty pins.

        Raises:
            ValueError: The document does not describe pins.
        """
        return cls() if document is None else _PINS.validate_python(document)

    def of(self, part: Part) -> Pin | None:
        """The pin of one part of the job."""
        pin: Pin | None = getattr(self, part)
        return pin

    def with_pin(self, part: Part, pin: Pin) -> Pins:
        """A copy of these pins in which one pin is replaced."""
        changed: dict[str, Any] = {part: pin}
        return replace(self, **changed)

    def stored(self) -> dict[str, Any]:
        """The JSON document for a job's row."""
        document: dict[str, Any] = _PINS.dump_python(self, mode="json", exclude_none=True)
        return document


_PINS = TypeAdapter(Pins)


def pin_path(
    path: Path,
    *,
    name: str,
    param: str = "model",
    error: type[UserError] = InvalidModel,
    with_digests: bool = True,
) -> PinnedFiles:
    """Make a pin of a file, or of the files in a folder that loading may read.

    Args:
        path: The real path.
        name: The name that the user gave, for messages.
        param: The field of the spec that names the file or folder.
        error: The class of the error that is raised.
        with_digests: Whether to read the files for digests; otherwise only sizes and stamps are recorded.

    Raises:
        UserError: An `error`: the path does not exist, or a folder has too many files.
        ServiceUnavailable: The path cannot be read.
    """
    with _translated(name, param, error, missing="there is no such file or folder"):
        return PinnedFiles(
            tuple(
                PinnedFile(file, status.st_size, file_stamp(status), _digest(full, status) if with_digests else None)
                for file, full, status in _files(path)
            )
        )


def check_pin(
    pin: Pin | None,
    path: Path,
    *,
    name: str,
    param: str = "model",
    error: type[UserError] = InvalidModel,
    by_content: bool = False,
) -> None:
    """Check that a file or folder still matches its pin. Does nothing if `pin` is not a pin of files.

    This is cheap: files are read only on hosts other than the one that pinned them, and only once per process.

    Args:
        by_content: Whether to compare digests on all hosts, for small files that may be rewritten with the same
            content. A pin without digests is compared by stamps.

    Raises:
        UserError: An `error`: the file or folder changed after the job was submitted.
        ServiceUnavailable: The file or folder cannot be read.
    """
    if not isinstance(pin, PinnedFiles):
        return
    pinned = {file.name: file for file in pin.files}
    with _translated(name, param, error, missing="was removed after the job was submitted"):
        present = {file: (full, status) for file, full, status in _files(path)}
        changed = (
            file
            for file in sorted(pinned.keys() | present.keys())
            if file not in present
            or file not in pinned
            or not _is_pinned(pinned[file], *present[file], by_content=by_content)
        )
        first = next(changed, None)
    if first is not None:
        raise error(f"{param} '{name}': {first} changed after the job was submitted", param=param)


@contextmanager
def _translated(name: str, param: str, error: type[UserError], *, missing: str) -> Iterator[None]:
    """Convert errors from reading files into errors that name the field.

    Args:
        name: The name that the user gave.
        param: The field of the spec that names the file or folder.
        error: The class of the error that is raised, except for machine errors.
        missing: The end of the message if the path does not exist.
    """
    try:
        yield
    except TooManyFiles as cause:
        raise error(f"{param} '{name}': has more than {MOST_FILES} files in one folder", param=param) from cause
    except FileNotFoundError as cause:
        raise error(f"{param} '{name}': {missing}", param=param) from cause
    except OSError as cause:
        raise ServiceUnavailable(f"{param} '{name}': cannot be read: {reason(cause)}") from cause


def folder_stamp(path: Path) -> tuple[tuple[str, int, str], ...]:
    """The state of a folder, to detect changes on this host; empty if the folder does not exist or cannot be read."""
    try:
        return tuple((file, status.st_size, file_stamp(status)) for file, _, status in _files(path))
    except (OSError, TooManyFiles):
        return ()


def _is_pinned(file: PinnedFile, path: Path, status: os.stat_result, *, by_content: bool) -> bool:
    if file.num_bytes != status.st_size:
        return False
    if by_content and file.digest is not None:
        return file.digest == _digest(path, status)
    present = file_stamp(status)
    if is_same(file.stamp, present):
        return True
    is_elsewhere = _host(file.stamp) != _host(present)
    return is_elsewhere and (file.digest is None or file.digest == _digest(path, status))


def _host(stamp: str) -> str:
    return stamp.rpartition("@")[2]


def _files(path: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Relative name, path and status of each regular file that loading may read."""
    path.stat()  # raises FileNotFoundError if the path does not exist
    for name, full in model_files(path):
        try:
            status = full.stat()
        except FileNotFoundError:
            continue  # a broken link
        if stat.S_ISREG(status.st_mode):
            yield name, full, status


def _digest(path: Path, status: os.stat_result) -> str:
    return _digest_of(str(path), status.st_size, file_stamp(status))


@lru_cache(maxsize=_MOST_DIGESTS)
def _digest_of(path: str, num_bytes: int, _stamp: str) -> str:
    """The digest of a file. The stamp is part of the cache key, so a changed file is read again."""
    digest = hashlib.sha256(str(num_bytes).encode())
    with Path(path).open("rb") as file:
        if num_bytes <= _WHOLE_BYTES:
            while block := file.read(2**20):
                digest.update(block)
        else:
            for number in range(_NUM_BLOCKS):
                file.seek((num_bytes - _BLOCK_BYTES) * number // (_NUM_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
