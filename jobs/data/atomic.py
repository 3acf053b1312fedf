"""Local files and folders that appear whole or not at all: written aside, synced to disk, then renamed into place."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from jobs import locks
from jobs.errors import InvalidOutput, ServiceUnavailable
from jobs.messages import reason

_SYNC_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP}
_LOCKS_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
_USERS_FAULT = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EINVAL,
}  # fmt: skip
_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE}


@contextmanager
def write_aside(path: Path) -> Iterator[BinaryIO]:
    """Write a user's file: what the block writes stands at `path` once it ends, and nothing does when it raises.

    It is written under a hidden name in the same folder. What a killed writer of the same file left there is removed
    first; a writer that still lives holds a lock on its own and is left alone.

    Args:
        path: the file; an older file there is replaced. Its folder must exist. A link, folder or device is refused.

    Raises:
        InvalidOutput: no file can be written there.
        ServiceUnavailable: the disk is full or failing.
    """
    with _explaining(path):
        _refuse_irregular(path)
        aside, handle = _open_aside(path)
    try:
        with handle:  # closed last: it holds the lock
            yield handle
            with _explaining(path):
                _publish(aside, handle, path)
    except OSError as error:
        if error.errno not in _DISK_FAULTS:  # the block's own affair
            raise
        raise ServiceUnavailable(f"writing {path} failed: {reason(error)}") from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, *, mode: int) -> Iterator[BinaryIO]:
    """Write a file of our own, whole or not at all, as `write_aside` does; what goes wrong is the system's OSError.

    Args:
        path: The file; an older one is replaced.
        mode: Its permissions, less what the umask takes away.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            _publish(aside, handle, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """A folder to fill, which stands at `path` once the block ends, and nowhere when it raises.

    Where another process puts its own there first, that one stays: both must have the same content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield aside
        try:
            aside.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _publish(aside: Path, handle: BinaryIO, path: Path) -> None:
    handle.flush()
    os.fsync(handle.fileno())
    aside.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a folder, renames included, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _SYNC_UNSUPPORTED:  # some network file systems can sync files only
            raise
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a folder with its missing parents, each synced into the folder that holds it.

    Raises:
        FileNotFoundError: another removed it, or a parent of it, meanwhile.
        NotADirectoryError: something else has its name.
    """
    if path.is_dir():
        return
    make_directory(path.parent)
    try:
        path.mkdir()
    except FileExistsError as error:
        if not stat.S_ISDIR(path.stat().st_mode):  # else another has just made it
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error
    sync_directory(path.parent)


def _refuse_irregular(path: Path) -> None:
    try:
        is_regular = stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_regular:
        raise InvalidOutput(f"{path} is there already and is not a regular file", param="output.path")


def _open_aside(path: Path) -> tuple[Path, BinaryIO]:
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # the name itself may be as long as names can be
    for leftover in path.parent.glob(f".stoker-{digest}-*.tmp"):
        _remove_if_abandoned(leftover)
    while True:
        aside = path.with_name(f".stoker-{digest}-{secrets.token_hex(8)}.tmp")
        descriptor = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        _try_lock(descriptor)
        if os.fstat(descriptor).st_nlink:  # else it was taken for a leftover before it was locked
            return aside, os.fdopen(descriptor, "wb")
        os.close(descriptor)


def _remove_if_abandoned(leftover: Path) -> None:
    try:
        descriptor = os.open(leftover, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # gone by now, or another user's
        return
    try:
        if _try_lock(descriptor):
            leftover.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        return locks.try_take(descriptor)
    except OSError as error:
        if error.errno in _LOCKS_UNSUPPORTED:
            return False  # some network file systems: leftovers stay, which is better than taking a live one
        raise


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, ValueError) or error.errno in _USERS_FAULT:
            raise InvalidOutput(f"{path} cannot be written: {reason(error)}", param="output.path") from error
        raise ServiceUnavailable(f"writing {path} failed: {reason(error)}") from error
