"""Locks of files between processes (`flock`): waited for, tried once, or waited for during a limited time.

The kernel gives a lock back when its holder closes the file or ends, however it ends. `filelock` keeps the descriptor
to itself and may remove the file; here child processes inherit descriptors, and the file of a lock may have content.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAUSE_SECONDS = 0.02  # `flock` can wait for ever or not at all, nothing between


def open_lock(path: str | Path) -> int:
    """Open the file of a lock, made for its owner only where it is missing; the descriptor is the caller's to close."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def take(descriptor: int) -> None:
    """Wait until the lock of an open file is taken, for this process alone."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def share(descriptor: int) -> None:
    """Wait until the lock of an open file is taken, together with others that share it."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def try_take(descriptor: int) -> bool:
    """Take the lock of an open file for this process alone, unless another holds it now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_within(descriptor: int, seconds: float) -> bool:
    """Take the lock of an open file for this process alone; False where others still hold it after so many seconds."""
    give_up_at = time.monotonic() + seconds
    while not try_take(descriptor):
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(_PAUSE_SECONDS)
    return True


@contextmanager
def held(descriptor: int) -> Iterator[None]:
    """Hold the lock of an open file during a block; the file is closed with it."""
    try:
        take(descriptor)
        yield
    finally:
        os.close(descriptor)
