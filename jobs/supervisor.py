"""Keep child processes running: start them, restart those that die, and finally end them all in order."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs import process
from jobs.retries import Backoff

logger = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 1.0
"""A signal that arrives just before a wait begins does not end it: Python calls its handler after the wait."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program to keep running."""

    name: str
    """Name in log lines."""
    start: Callable[[int], subprocess.Popen[bytes]]
    """Starts the program with `process.spawn`. Its argument is the number of quick deaths in a row before this start.
    An OSError means that the program cannot be started now; the start is tried again."""
    grace_seconds: float
    """Time between SIGTERM and SIGKILL."""
    final_statuses: Mapping[int, str] = field(default_factory=dict)
    """Exit statuses after which the program must not be started again, each with the reason for the log."""
    log: Path | None = None
    """File of the program's output, which is named when the program dies."""


@dataclass(slots=True)
class _Child:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    """The running process; None before the first start and after each death."""
    started_at: float = 0.0
    due_at: float = 0.0
    """Monotonic time of the next start or, during the end, of the kill. Infinite if neither is to come."""
    num_quick_deaths: int = 0


class Supervisor:
    """Keeps programs running in the thread that calls `run`; that thread alone touches the processes.

    The other methods may be called from any thread and from signal handlers: they take no lock.
    """

    def __init__(self, backoff: Backoff, *, settled_seconds: float) -> None:
        """
        Args:
            backoff: Delay of a restart after quick deaths in a row.
            settled_seconds: A program that lived this long is restarted at once, and its quick deaths are forgotten.
        """
        self._backoff, self._settled_seconds = backoff, settled_seconds
        self._groups: list[list[_Child]] = []
        self._is_ending = self._is_killing = False
        self._events: queue.SimpleQueue[_Child | None] = queue.SimpleQueue()
        """A child whose process has ended, or None to wake `run` up. `put` is safe in signal handlers."""

    def start(self, *programs: Program) -> None:
        """Keep programs running from now on. Those of one call form a group, which is ended together."""
        self._groups.append([_Child(program) for program in programs])
        self._events.put(None)

    def stop(self) -> None:
        """Have `run` end all programs and return."""
        self._is_ending = True
        self._events.put(None)

    def kill(self) -> None:
        """Like `stop`, but kill all programs at once, also after `stop`."""
        self._is_killing = True
        self.stop()

    def num_quick_deaths(self) -> dict[str, int]:
        """Program name -> number of times in a row that it died soon after its start, or could not be started."""
        return {child.program.name: child.num_quick_deaths for child in self._children()}

    def run(self) -> None:
        """Supervise until `stop`, or until no program may be started again.

        Then end the groups, the last started first: all programs of a group get SIGTERM, and those that are left after
        their grace are killed. No process is left.
        """
        try:
            while not self._is_ending:
                for child in self._children():
                    if child.due_at <= time.monotonic():
                        self._start(child)
                self._handle_event(until=min((child.due_at for child in self._children()), default=math.inf))
        finally:
            self._is_ending = True
            for group in reversed(self._groups):
                self._end(group)

    def _children(self) -> Iterator[_Child]:
        return (child for group in self._groups for child in group)

    # -- one process

    def _start(self, child: _Child) -> None:
        child.started_at, child.due_at = time.monotonic(), math.inf
        try:
            started = child.program.start(child.num_quick_deaths)
        except OSError as error:  # out of processes, memory or disk
            self._restart_later(child, f"cannot be started ({error})", lived_seconds=0.0)
            return
        try:
            threading.Thread(target=self._await_death, args=(child, started), name="waiter", daemon=True).start()
        except RuntimeError as error:  # out of threads
            process.end(started, grace_seconds=0.0)
            self._restart_later(child, f"cannot be waited for ({error})", lived_seconds=0.0)
            return
        child.process = started
        logger.info("started %s as process %d", child.program.name, started.pid)

    def _await_death(self, child: _Child, started: subprocess.Popen[bytes]) -> None:
        """Report the end of a process once all that it started is gone too, and cannot disturb a successor."""
        started.wait()
        try:
            process.kill_group(started)
            process.kill_adopted()
        finally:
            self._events.put(child)

    def _handle_event(self, until: float) -> None:
        """Wait for an event, at most until `until` (monotonic seconds), and never long."""
        with contextlib.suppress(queue.Empty):
            child = self._events.get(timeout=max(0.0, min(_LONGEST_WAIT_SECONDS, until - time.monotonic())))
            if child is not None:
                self._note_death(child)

    def _note_death(self, child: _Child) -> None:
        assert child.process is not None
        status, child.process, child.due_at = child.process.wait(), None, math.inf
        if status in child.program.final_statuses:
            logger.error("%s is not started again: %s", child.program.name, child.program.final_statuses[status])
            if all(other.process is None and other.due_at == math.inf for other in self._children()):
                self._is_ending = True
        elif not self._is_ending:
            self._restart_later(child, process.status_in_words(status), time.monotonic() - child.started_at)

    def _restart_later(self, child: _Child, what_happened: str, lived_seconds: float) -> None:
        is_quick = lived_seconds < self._settled_seconds
        child.num_quick_deaths = child.num_quick_deaths + 1 if is_quick else 0
        delay_seconds = self._backoff.delay_seconds(child.num_quick_deaths) if is_quick else 0.0
        child.due_at = time.monotonic() + delay_seconds
        where = "" if child.program.log is None else f" (log: {child.program.log})"
        logger.warning(
            "%s %s; it is started again in %.1f s%s", child.program.name, what_happened, delay_seconds, where
        )

    # -- the end

    def _end(self, group: Sequence[_Child]) -> None:
        for child, running in _running(group):
            logger.info("ending %s", child.program.name)
            running.send_signal(signal.SIGTERM)
            child.due_at = time.monotonic() + child.program.grace_seconds
        while left := _running(group):
            for child, running in left:
                if child.due_at <= time.monotonic() or (self._is_killing and child.due_at < math.inf):
                    logger.warning("%s is killed", child.program.name)
                    process.kill_group(running)
                    child.due_at = math.inf
            self._handle_event(until=min(child.due_at for child, _ in left))


def _running(group: Sequence[_Child]) -> list[tuple[_Child, subprocess.Popen[bytes]]]:
    return [(child, child.process) for child in group if child.process is not None]
