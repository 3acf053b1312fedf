"""File locks between processes (`flock`): wait for a lock, try once, or wait for a limited time.

The kernel releases a lock when its holder closes the file or ends, even by a crash. The package `filelock` is not used
because it hides the descriptor and may delete the file: here child processes inherit descriptors, and the file of a
lock may have content.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAUSE_SECONDS = 0.02  # pause between tries, since `flock` has no timeout


def open_lock(path: str | Path) -> int:
    """Open the file of a lock, and create it with mode 0600 if it is missing. The caller must close the descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def take(descriptor: int) -> None:
    """Take the lock of an open file exclusively; wait until it is free."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def share(descriptor: int) -> None:
    """Take the lock of an open file as one of several sharers; wait until it can be shared."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def try_take(descriptor: int) -> bool:
    """Take the lock of an open file exclusively without waiting. Returns whether it was taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_within(descriptor: int, seconds: float) -> bool:
    """Take the lock of an open file exclusively, and wait up to `seconds`. Returns whether it was taken."""
    give_up_at = time.monotonic() + seconds
    while not try_take(descriptor):
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(_PAUSE_SECONDS)  # flock has no timeout
    return True


@contextmanager
def held(descriptor: int) -> Iterator[None]:
    """Hold the lock of an open file during a block, and close the file at its end."""
    try:
        take(descriptor)
        yield
    finally:
        os.close(descriptor)
