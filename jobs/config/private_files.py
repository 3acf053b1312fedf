"""File modes in the data directory: only the owner may read what Stoker keeps there."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.config.locations import Locations

logger = logging.getLogger(__name__)

FOLDERS = ("job-models", "logs", "redis", "store", "training")
"""Folders of an embedded stack in its data directory."""
_FOLDERS = (*FOLDERS, "redis.damaged")
_FILES = (
    *(f"stoker.db{ending}" for ending in ("", "-shm", "-wal", "-journal")),
    *("local.key", "up.lock", "parts.lock", "use.lock"),
)
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


def make_private(locations: Locations, *, folders: Sequence[str] = ()) -> None:
    """Remove the permissions of other users from Stoker's files in the data directory.

    An existing data directory keeps its mode, since it may also hold other files of the user.

    Args:
        locations: The locations; their data directory must exist.
        folders: Names from `FOLDERS`; these folders are created if they are missing.
    """
    for name in folders:
        (locations.data_dir / name).mkdir(mode=_FOLDER_MODE, exist_ok=True)
    for path, mode in _known(locations.data_dir):
        _restrict(path, mode)


def make_database_file(locations: Locations) -> None:
    """Create an empty file for the embedded database. Files that SQLite adds beside it get the same mode."""
    os.close(os.open(locations.data_dir / "stoker.db", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _FILE_MODE))


def open_private(path: str, flags: int) -> int:
    """An `opener` for the function `open`; files that it creates are private to their owner."""
    return os.open(path, flags, _FILE_MODE)


def _known(data_dir: Path) -> Iterator[tuple[Path, int]]:
    for name in _FOLDERS:
        yield data_dir / name, _FOLDER_MODE
    for name in _FILES:
        yield data_dir / name, _FILE_MODE


def _restrict(path: Path, mode: int) -> None:
    try:
        status = path.lstat()
        is_loose = status.st_mode & 0o077 and not stat.S_ISLNK(status.st_mode)
        if is_loose:
            path.chmod(mode)
    except FileNotFoundError:
        return
    except OSError as error:  # the file belongs to another user
        logger.warning("other users may read '%s', and its permissions cannot be changed: %s", path, error.strerror)
