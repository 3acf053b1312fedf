"""Write local files and folders atomically: write under a temporary name, sync to disk, then rename into place."""

from __future__ import annotations

import contextlib
import errno
import glob
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
_USER_ERRORS = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EINVAL,
}  # fmt: skip
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE}


@contextmanager
def write_aside(path: Path) -> Iterator[BinaryIO]:
    """Write a user's file: it appears at `path` when the block ends, and not at all if the block raises.

    It is written under a hidden name in the same folder. Files that killed writers of the same path left there are
    removed first. A writer that is still running holds a lock on its file, which is therefore kept.

    Args:
        path: Path of the file. An older file is replaced; a link, folder or device is rejected. Its folder must exist.

    Raises:
        InvalidOutput: No file can be written there.
        ServiceUnavailable: The disk is full or failing.
    """
    with _explaining(path):
        _refuse_irregular(path)
        aside, handle = _open_aside(path)
    try:
        with handle:  # closed last, because it holds the lock
            yield handle
            with _explaining(path):
                _publish(aside, handle, path)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:  # an error of the block itself
            raise
        raise ServiceUnavailable(f"writing {path} failed: {reason(error)}") from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, *, mode: int) -> Iterator[BinaryIO]:
    """Write one of Stoker's own files atomically, as `write_aside` does; errors are plain OSErrors.

    Args:
        path: Path of the file; an older file is replaced.
        mode: Permissions of the file, before the umask is applied.
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
    """Yield a folder to fill. It appears at `path` when the block ends, and not at all if the block raises.

    If another process creates the folder first, that one is kept, so both must have the same content. What killed
    writers of the same path left is removed first; a writer that is still running holds a lock on its folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}-*"):
        _remove_if_abandoned(leftover)
    aside, lock = _make_aside(path)
    try:
        yield aside
        try:
            place_folder(aside, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        os.close(lock)
        shutil.rmtree(aside, ignore_errors=True)


def _make_aside(path: Path) -> tuple[Path, int]:
    """Make the folder that becomes `path`; returns it and the descriptor that holds its lock."""
    while True:
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _lock(lock)
            if aside.is_dir():  # otherwise it was removed as a leftover before it was locked
                return aside, lock
            os.close(lock)


def place_folder(aside: Path, path: Path) -> None:
    """Sync a folder and all that is in it, and rename it to `path`, where nothing may be yet."""
    folders = {aside}
    for entry in aside.rglob("*"):
        if entry.is_dir():
            folders.add(entry)
        else:
            descriptor = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    for folder in folders:
        sync_directory(folder)
    aside.rename(path)
    sync_directory(path.parent)


def _publish(aside: Path, handle: BinaryIO, path: Path) -> None:
    handle.flush()
    os.fsync(handle.fileno())
    aside.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Sync a folder, so that new and renamed entries survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _SYNC_UNSUPPORTED:  # some network file systems can sync files only
            raise
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create a folder and its missing parents, and sync each one's parent.

    Raises:
        FileNotFoundError: Another process removed it or one of its parents meanwhile.
        NotADirectoryError: Something that is not a folder has that name.
    """
    if path.is_dir():
        return
    make_directory(path.parent)
    try:
        path.mkdir()
    except FileExistsError as error:
        if not stat.S_ISDIR(path.stat().st_mode):  # otherwise another process has just created it
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error
    sync_directory(path.parent)


def _refuse_irregular(path: Path) -> None:
    try:
        is_regular = stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_regular:
        raise InvalidOutput(f"{path} exists already and is not a regular file", param="output.path")


def _open_aside(path: Path) -> tuple[Path, BinaryIO]:
    # a digest, because the name itself may already have the maximum length
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    for leftover in path.parent.glob(f".stoker-{digest}-*.tmp"):
        _remove_if_abandoned(leftover)
    while True:
        aside = path.with_name(f".stoker-{digest}-{secrets.token_hex(8)}.tmp")
        descriptor = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:  # otherwise it was removed as a leftover before it was locked
            return aside, os.fdopen(descriptor, "wb")
        os.close(descriptor)


def _remove_if_abandoned(leftover: Path) -> None:
    try:
        descriptor = os.open(leftover, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # already removed, or owned by another user
        return
    try:
        if _try_lock(descriptor):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock a file or folder that this process has just made; waits for a process that is removing it."""
    try:
        locks.take(descriptor)
    except OSError as error:
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise


def _try_lock(descriptor: int) -> bool:
    try:
        return locks.try_take(descriptor)
    except OSError as error:
        if error.errno in _LOCKS_UNSUPPORTED:
            return False  # some network file systems: keeping leftovers is better than removing a file in use
        raise


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, ValueError) or error.errno in _USER_ERRORS:
            raise InvalidOutput(f"{path} cannot be written: {reason(error)}", param="output.path") from error
        raise ServiceUnavailable(f"writing {path} failed: {reason(error)}") from error
