"""What Stoker keeps in its data directory, readable by its owner alone, whoever made that directory."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.config.locations import Locations

logger = logging.getLogger(__name__)

FOLDERS = ("job-models", "logs", "redis", "store", "training")
"""What an embedded stack keeps in its data directory."""
_FOLDERS = (*FOLDERS, "redis.damaged")
_FILES = (
    *(f"stoker.db{ending}" for ending in ("", "-shm", "-wal", "-journal")),
    *("local.key", "up.lock", "parts.lock", "use.lock"),
)
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


def make_private(locations: Locations, *, folders: Sequence[str] = ()) -> None:
    """Take the rights of other users of this host on what lies in the data directory.

    The directory itself keeps its mode where it was there before: it may hold other things of the user's.

    Args:
        locations: Their data directory must exist.
        folders: of the known ones, those that are made where they are missing.
    """
    for name in folders:
        (locations.data_dir / name).mkdir(mode=_FOLDER_MODE, exist_ok=True)
    for path, mode in _known(locations.data_dir):
        _restrict(path, mode)


def make_database_file(locations: Locations) -> None:
    """Make the embedded database's file, empty; what SQLite puts beside it gets the mode of this one."""
    os.close(os.open(locations.data_dir / "stoker.db", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _FILE_MODE))


def open_private(path: str, flags: int) -> int:
    """An `opener` of files that only their owner may read."""
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
    except OSError as error:  # another user's
        logger.warning("others may read '%s', and that cannot be changed: %s", path, error.strerror)
