"""The supervisor: discovers the host's slots and keeps one Celery worker running for each until a signal ends it."""

from __future__ import annotations

import argparse
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import redis
from sqlalchemy.exc import ProgrammingError

from jobs import process
from jobs.config.private_files import make_private
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.errors import ServiceUnavailable
from jobs.ledger import slots
from jobs.ledger.slots import SlotInfo
from jobs.messages import first_line
from jobs.queue import connect
from jobs.retries import ENDLESS, RetryAt, RetryPolicy, decide
from worker.children import DISPLACED_STATUS, RUNNER_MODULE, app_command, app_environment
from worker.host.slots import discover
from worker.log_format import set_up_logging

logger = logging.getLogger(__name__)

_RESTART_POLICY = RetryPolicy(max_attempts=ENDLESS, first_seconds=0.25, max_seconds=30.0)
_WAIT_POLICY = RetryPolicy(max_attempts=ENDLESS, first_seconds=0.25, max_seconds=5.0)
_SETTLED_SECONDS = 30.0  # a worker that lived this long has started well; its next death counts as the first
_END_MARGIN_SECONDS = 5.0  # beyond the grace: time for a worker to record the end and exit


@dataclass(slots=True)
class _Member:
    """One slot's Celery worker: alive, due to be started, or left to another supervisor."""

    slot: SlotInfo
    due_at: float | None
    """When to start the worker; None while it is alive, and permanently once another worker has taken the slot."""
    worker: subprocess.Popen[bytes] | None = None
    incarnation: str = ""
    started_at: float = 0.0
    deaths: int = 0
    """Number of consecutive deaths, each soon after the start."""


def restart_delay(deaths: int, lived_seconds: float) -> tuple[int, float]:
    """How long to wait before a dead worker is started again.

    Args:
        deaths: Number of quick deaths before this one.
        lived_seconds: How long this worker lived.

    Returns:
        The number of quick deaths now, and the delay in seconds, which is 0 if the worker has lived long enough.
    """
    if lived_seconds >= _SETTLED_SECONDS:
        return 0, 0.0
    verdict = decide(ServiceUnavailable(), deaths + 1, _RESTART_POLICY)
    return deaths + 1, verdict.delay_seconds if isinstance(verdict, RetryAt) else _RESTART_POLICY.max_seconds


class Supervisor:
    """Starts and restarts the workers, on one thread that sleeps until a signal, a child's end or a due restart."""

    def __init__(self, settings: Settings, infos: Sequence[SlotInfo], *, runner_module: str = RUNNER_MODULE) -> None:
        self._settings, self._runner_module = settings, runner_module
        self._database = Database(settings.resolved_database_url)
        self._members = [_Member(info, due_at=0.0) for info in infos]
        self._num_signals = 0

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT.

        Returns:
            The exit status: 0 after an end in order, 1 if other workers have taken every slot.
        """
        with _waking_signals(self._count_signal) as (selector, signals_fd):
            self._selector, self._signals_fd = selector, signals_fd
            if not self._wait_for_services():
                return 0
            while not self._num_signals:
                for member in self._members:
                    if member.due_at is not None and member.due_at <= time.monotonic():
                        self._start(member)
                if all(member.worker is None and member.due_at is None for member in self._members):
                    logger.error("every slot of this host belongs to another worker; give one of them a host_name")
                    return 1
                due = [member.due_at for member in self._members if member.due_at is not None]
                self._sleep(until=min(due) if due else None)
            self._end()
        self._database.close()
        return 0

    # -- waiting

    def _count_signal(self) -> None:
        self._num_signals += 1

    def _sleep(self, until: float | None) -> None:
        """Wait for a signal or a child's end, at most until `until` (monotonic seconds), and handle ended children."""
        timeout = None if until is None else max(0.0, until - time.monotonic())
        for key, _ in self._selector.select(timeout):
            if key.fd == self._signals_fd:
                os.read(self._signals_fd, 4096)
        for member in self._members:
            if member.worker is not None and member.worker.poll() is not None:
                self._bury(member, member.worker)

    def _wait_for_services(self) -> bool:
        """Wait until the slots are registered and Redis answers; False if a signal came first."""
        attempt = 0
        while not self._num_signals:
            try:
                slots.register(self._database, [member.slot for member in self._members])
                with connect(self._settings) as client:
                    client.ping()
            except (ServiceUnavailable, ProgrammingError, redis.RedisError, OSError) as error:
                attempt += 1
                if attempt == 1:  # a missing table is waited for too: the schema may be about to be created
                    logger.warning("waiting for the database and Redis: %s", first_line(error))
                verdict = decide(ServiceUnavailable(), attempt, _WAIT_POLICY)
                assert isinstance(verdict, RetryAt)
                self._sleep(until=time.monotonic() + verdict.delay_seconds)
            else:
                return True
        return False

    # -- one worker

    def _start(self, member: _Member) -> None:
        member.incarnation, member.started_at, member.due_at = new_id("worker"), time.monotonic(), None
        try:
            member.worker = process.spawn(
                app_command(member.slot, member.incarnation, runner_module=self._runner_module),
                env=app_environment(os.environ, device_uuid=member.slot.device_uuid),
                on_parent_death=signal.SIGTERM,  # so that the workers end in order, and their runners with them
            )
        except OSError as error:
            member.deaths, delay = restart_delay(member.deaths, 0.0)
            member.due_at = time.monotonic() + delay
            logger.error("the worker of %s cannot be started: %s", member.slot.id, error)
            return
        logger.info("started the worker of %s as process %d", member.slot.id, member.worker.pid)

    def _bury(self, member: _Member, worker: subprocess.Popen[bytes]) -> None:
        process.kill_group(worker)
        process.kill_adopted()
        member.worker = None
        if worker.returncode == DISPLACED_STATUS:
            logger.error("%s belongs to another worker now and is left to it", member.slot.id)
            return
        if self._num_signals:
            return
        member.deaths, delay = restart_delay(member.deaths, time.monotonic() - member.started_at)
        member.due_at = time.monotonic() + delay
        logger.warning(
            "the worker of %s %s; it is started again in %.1f s",
            member.slot.id,
            process.status_in_words(worker.returncode),
            delay,
        )

    # -- the end

    def _end(self) -> None:
        """End all workers in order within the grace, kill those that are left, and retire the slots."""
        logger.info("ending %d workers", sum(member.worker is not None for member in self._members))
        for member in self._members:
            if member.worker is not None:
                member.worker.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.grace_seconds + _END_MARGIN_SECONDS
        while any(member.worker is not None for member in self._members):
            if self._num_signals > 1 or time.monotonic() >= deadline:
                self._kill_all()
                break
            self._sleep(until=deadline)
        try:
            for member in self._members:
                slots.retire(self._database, [member.slot.id], incarnation=member.incarnation)
        except ServiceUnavailable as error:
            logger.warning("the slots could not be retired, they will fall silent: %s", error)
        logger.info("ended")

    def _kill_all(self) -> None:
        for member in self._members:
            if member.worker is not None:
                logger.warning("the worker of %s is killed", member.slot.id)
                process.kill_group(member.worker)
                member.worker.wait()
                member.worker = None
        process.kill_adopted()


@contextmanager
def _waking_signals(on_end: Callable[[], None]) -> Iterator[tuple[selectors.BaseSelector, int]]:
    """Make SIGTERM, SIGINT and SIGCHLD wake a selector.

    Args:
        on_end: Called on each SIGTERM and SIGINT.

    Returns:
        The selector, and the file descriptor in it that is readable after a signal.
    """
    ours, pythons = socket.socketpair()
    for end in (ours, pythons):
        end.setblocking(False)
    former = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: on_end()),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: on_end()),
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
    }
    former_fd = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ours, selectors.EVENT_READ)
            yield selector, ours.fileno()
    finally:
        signal.set_wakeup_fd(former_fd)
        for number, handler in former.items():
            signal.signal(number, handler)
        ours.close()
        pythons.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the workers of this host until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="worker.host.main", description=__doc__)
    parser.add_argument("--runner-module", default=RUNNER_MODULE, help="the module that is run as the runner")
    arguments = parser.parse_args(argv)
    set_up_logging("supervisor")
    process.adopt_orphans()  # processes that a killed worker leaves behind are killed too
    settings = Settings()
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_private(settings, folders=("job-models", "training"))
    infos = discover(settings, visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"))
    for info in infos:
        logger.info(
            "slot %s: %s, %.1f GiB, %d threads", info.id, info.name, info.memory_bytes / 2**30, info.num_threads
        )
    return Supervisor(settings, infos, runner_module=arguments.runner_module).run()


if __name__ == "__main__":
    sys.exit(main())
