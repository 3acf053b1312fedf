"""Processes that a test freezes: they go on again however the test ends, so that no later test finds them stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """While inside, these processes are stopped (SIGSTOP); one that has ended meanwhile is passed over."""
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
