"""What a job computes with, stamped when it is submitted and compared by every runner before it uses it.

A model folder whose weights are replaced in mid job would give one job two models, so a change is refused, as it is for
inputs. A pin holds, for each file that loading may read, its size, its stamp (`jobs.access.stamps`) and a digest. A
request cannot wait for digests, so they are added when the job is planned, from files that still are what was stamped.

On the host that made the pin, size and stamp decide. Another host has other inodes, and a copy of the folder has times
of its own; there the sizes and the digests decide. A digest is of all bytes of a file of up to 64 MiB (configurations,
tokenizers), and of blocks spread over a larger one (weights), which tells other weights but no single flipped bit.

Which files a job's spec names is known to `jobs.ledger.job_pins`.
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

_WHOLE_BYTES = 64 * 2**20  # the largest file whose digest is of all its bytes
_BLOCK_BYTES = 64 * 2**10
_NUM_BLOCKS = 64  # blocks that are read of a larger file
_MOST_DIGESTS = 4096  # remembered by one process

Part = Literal["model", "processor", "module"]
"""What of a job is pinned."""


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """One file as it was."""

    name: str
    """Its path within the pinned folder; of a file that was pinned alone, its name."""
    num_bytes: int
    stamp: str
    """As `jobs.access.stamps.file_stamp` makes it."""
    digest: str | None = None
    """None where only size and stamp were taken, as at submission."""


@dataclass(frozen=True, slots=True)
class PinnedFiles:
    """A file, or the files of a folder that loading may read."""

    files: tuple[PinnedFile, ...]


@dataclass(frozen=True, slots=True)
class PinnedRevision:
    """The commit of a hub id, written by the first runner that has resolved the name."""

    revision: str


Pin = PinnedFiles | PinnedRevision


@dataclass(frozen=True, slots=True)
class Pins:
    """Everything that a job computes with, its input left aside."""

    model: Pin | None = None
    processor: Pin | None = None
    module: Pin | None = None

    @classmethod
    def parse(cls, document: Mapping[str, Any] | None) -> Pins:
        """The pins that a job's row or an order holds; of None, none.

        Raises:
            ValueError: the document is not one of pins.
        """
        return cls() if document is None else _PINS.validate_python(document)

    def of(self, part: Part) -> Pin | None:
        """The pin of one part of the job."""
        pin: Pin | None = getattr(self, part)
        return pin

    def with_pin(self, part: Part, pin: Pin) -> Pins:
        """These pins with another one for a part."""
        changed: dict[str, Any] = {part: pin}
        return replace(self, **changed)

    def stored(self) -> dict[str, Any]:
        """What a job's row holds of them."""
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
    """A pin of a file, or of the files in a folder that loading may read.

    Args:
        path: the real path.
        name: what the user called it, for messages.
        param: the field of the spec that named it.
        error: what is raised.
        with_digests: whether the files are read as well; without, each is only looked at.

    Raises:
        UserError: of class `error`: it cannot be read, or holds too many files.
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
    """Refuse a file or folder that is not what was pinned. Does nothing without a pin of this kind.

    Cheap: files are read only on other hosts than the one that pinned them, and there once by each process.

    Args:
        by_content: Whether the digests decide on every host, for small files that may be written anew as they were;
            a pin without digests is compared by stamps.

    Raises:
        UserError: of class `error`: it changed after the job was submitted.
        ServiceUnavailable: it cannot be read.
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
    """While inside, what reading files raises becomes an error that names the field.

    Args:
        name: what the user called the file or folder.
        param: the field of the spec that named it.
        error: the class of what is raised, unless it is the machine's.
        missing: the end of the sentence where there is nothing.
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
    """What tells a folder on this host from what it was before; empty where there is none."""
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
    """Name, place and status of each regular file that loading may read."""
    path.stat()  # says that there is nothing at all
    for name, full in model_files(path):
        try:
            status = full.stat()
        except FileNotFoundError:
            continue  # a link to nothing
        if stat.S_ISREG(status.st_mode):
            yield name, full, status


def _digest(path: Path, status: os.stat_result) -> str:
    return _digest_of(str(path), status.st_size, file_stamp(status))


@lru_cache(maxsize=_MOST_DIGESTS)
def _digest_of(path: str, num_bytes: int, _stamp: str) -> str:
    """The digest of a file in one state of it."""
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
