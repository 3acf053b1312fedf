"""Keep a few child processes alive: start them, restart those that die, and finally stop them all in order."""

from __future__ import annotations

import heapq
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs import process
from jobs.config.private_files import open_private
from jobs.retries import Backoff

logger = logging.getLogger(__name__)

_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=10.0)
_SETTLED_SECONDS = 5.0
"""A child that lived this long was healthy, so its backoff starts over."""
_KEPT_LOG_BYTES = 10 * 2**20
_KEPT_LOGS = 3
_TAIL_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Program:
    """A program to keep running."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    """File for its stdout and stderr."""
    grace_seconds: float
    """Time between SIGTERM and SIGKILL."""
    before_start: Callable[[int], None] = lambda _num_deaths: None
    """Called before each start with the number of quick deaths in a row."""


@dataclass(slots=True)
class _Child:
    program: Program
    process: subprocess.Popen[bytes]
    started_at: float
    num_quick_deaths: int = 0
    lived_seconds: float = 0.0
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def quick_deaths_so_far(self) -> int:
        """Number of quick deaths in a row, including this child's, which must be dead."""
        return 0 if self.lived_seconds >= _SETTLED_SECONDS else self.num_quick_deaths + 1


class Supervisor:
    """Owns its children until `stop`. When this process is killed, the kernel sends them SIGTERM."""

    def __init__(self, *, pass_fds: Sequence[int] = ()) -> None:
        """
        Args:
            pass_fds: File descriptors that every child inherits.
        """
        self._pass_fds = tuple(pass_fds)
        self._children: dict[str, _Child] = {}
        self._lock = threading.RLock()
        self._stopping = False
        self._deaths: queue.SimpleQueue[_Child | None] = queue.SimpleQueue()
        self._restarter = threading.Thread(target=self._restart_the_dead, name="restarter", daemon=True)
        self._restarter.start()

    def start(self, program: Program) -> None:
        """Start a program and keep it running from now on.

        Raises:
            OSError: The program cannot be started.
        """
        with self._lock:
            rotate_log(program.log)
            self._spawn(program, num_quick_deaths=0)

    def num_quick_deaths(self) -> dict[str, int]:
        """Program name -> number of times in a row that it died soon after its start."""
        with self._lock:
            return {name: child.num_quick_deaths for name, child in self._children.items()}

    def stop(self) -> None:
        """Stop all children, the last started first, and wait until each has ended with its whole process group."""
        self._stopping = True
        self._deaths.put(None)
        self._restarter.join()
        with self._lock:
            for child in reversed(self._children.values()):
                if not child.gone.is_set():
                    child.process.send_signal(signal.SIGTERM)
                    child.gone.wait(child.program.grace_seconds)
                process.kill_group(child.process)
                child.gone.wait()
            self._children.clear()

    def kill(self) -> None:
        """Kill all children at once. Safe in a signal handler, since it takes no lock. `stop` must still be called."""
        self._stopping = True
        for child in list(self._children.values()):
            process.kill_group(child.process)

    # -- the restarter's thread

    def _restart_the_dead(self) -> None:
        due: list[tuple[float, str]] = []
        while not self._stopping:
            wait_seconds = max(0.0, due[0][0] - time.monotonic()) if due else None
            try:
                dead = self._deaths.get(timeout=wait_seconds)
            except queue.Empty:
                self._respawn(heapq.heappop(due)[1])
                continue
            if dead is None or self._stopping:
                return
            heapq.heappush(due, (time.monotonic() + self._note_death(dead), dead.program.name))

    def _note_death(self, child: _Child) -> float:
        """Log that a child died. Returns the seconds until its restart."""
        backoff_seconds = _BACKOFF.delay_seconds(child.quick_deaths_so_far + 1)
        logger.warning(
            "%s ended (%s); it starts again in %.1f s (its log: %s)",
            child.program.name,
            describe_exit(child.process.returncode),
            backoff_seconds,
            child.program.log,
        )
        process.kill_group(child.process)  # the rest of its group must not run beside its successor
        return backoff_seconds

    def _respawn(self, name: str) -> None:
        with self._lock:
            if self._stopping:
                return
            child = self._children[name]
            try:
                self._spawn(child.program, num_quick_deaths=child.quick_deaths_so_far)
            except OSError as error:  # out of processes, memory or disk: try again later
                logger.warning("%s cannot be started: %s", name, error)
                child.num_quick_deaths, child.lived_seconds = child.quick_deaths_so_far, 0.0
                self._deaths.put(child)

    def _spawn(self, program: Program, *, num_quick_deaths: int) -> None:
        program.before_start(num_quick_deaths)
        with open(program.log, "ab", opener=open_private) as log:
            started = process.spawn(
                program.argv,
                env=program.env,
                stdout=log,
                stderr=log,
                pass_fds=self._pass_fds,
                on_parent_death=signal.SIGTERM,
            )
        child = _Child(program, started, time.monotonic(), num_quick_deaths)
        self._children[program.name] = child
        threading.Thread(target=self._await_death, args=(child,), name=f"{program.name}-waiter", daemon=True).start()

    def _await_death(self, child: _Child) -> None:
        child.process.wait()
        child.lived_seconds = time.monotonic() - child.started_at
        child.gone.set()
        self._deaths.put(child)


def describe_exit(status: int | None) -> str:
    """An exit status in words: `status 1` or `killed by SIGKILL`."""
    if status is None or status >= 0:
        return f"status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-status}"


def rotate_log(path: Path) -> None:
    """Rotate a log that has grown large, keeping a few older ones."""
    if not path.exists() or path.stat().st_size < _KEPT_LOG_BYTES:
        return
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, _KEPT_LOGS + 1))]
    for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
        if newer.exists():
            newer.replace(older)


def last_line(log: Path) -> str:
    """The last line of a log that is not blank, or an empty string."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except FileNotFoundError:
        return ""
    return next((line for line in reversed(lines) if line), "")
