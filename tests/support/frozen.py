"""Stop processes during a test; they continue however the test ends, so that no later test finds them stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop these processes (SIGSTOP) inside the block; a process that has ended is ignored."""
    held = []
    try:
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                process.suspend()
                held.append(process)
        yield
    finally:
        for process in held:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
