"""The Celery worker of one slot: listens to the slot's queue and passes each lease to the keeper."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from celery import Celery, signals
from celery.apps.worker import Worker, install_worker_term_handler
from celery.exceptions import SecurityWarning

from jobs import process
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.errors import ServiceUnavailable
from jobs.queue import TASK, Doorbell, make_app, queue_name
from jobs.retries import ENDLESS, RetryAt, RetryPolicy, decide
from worker.children import DISPLACED_STATUS, RUNNER_MODULE, runner_command, runner_environment
from worker.keeper import mailbox
from worker.keeper.doorbell_check import DoorbellCheck
from worker.keeper.heartbeat import Heartbeat
from worker.keeper.joblog import JobLog
from worker.keeper.keeper import Keeper
from worker.keeper.runner_pool import RunnerPool
from worker.keeper.runner_process import RunnerEvent, RunnerProcess
from worker.log_format import set_up_logging

logger = logging.getLogger(__name__)

DOORBELL_LOST_STATUS = 75
"""Exit status of a worker that its doorbell no longer reached and that did not end in order."""
_DOORBELL_LOST_MARGIN_SECONDS = 5.0
_START_SECONDS = 600.0  # a cold import of torch from a slow network disk takes minutes
_ENTER_POLICY = RetryPolicy(max_attempts=ENDLESS, first_seconds=0.25, max_seconds=5.0)


class _QuietWorker(Worker):  # type: ignore[misc]
    """Celery's worker with SIGTERM and SIGINT for an orderly end, and no banner, re-exec or debugger signals."""

    _wake_ends: tuple[socket.socket, socket.socket] | None = None

    def install_platform_tweaks(self, worker: Worker) -> None:
        for name in ("SIGTERM", "SIGINT"):
            install_worker_term_handler(worker, sig=name, verbose=False)

    def on_consumer_ready(self, consumer: object) -> None:
        """Make signals wake Celery's loop, which otherwise notices the shutdown at its next tick, up to 1 s later.

        Called after each connection to Redis, because a lost connection clears the loop's readers.
        """
        super().on_consumer_ready(consumer)
        if self._wake_ends is None:
            self._wake_ends = socket.socketpair()
            for end in self._wake_ends:
                end.setblocking(False)
            signal.set_wakeup_fd(self._wake_ends[1].fileno(), warn_on_full_buffer=False)
        ours = self._wake_ends[0]
        self.hub.add_reader(ours, ours.recv, 4096)


@dataclass(frozen=True, slots=True)
class SlotProcess:
    """The arguments that this process was started with."""

    slot_id: str
    incarnation: str
    device: str
    """`cuda` or `cpu`."""
    num_threads: int
    runner_module: str


class SlotWorker:
    """The parts of this process, and the callbacks that connect them."""

    def __init__(self, slot: SlotProcess, settings: Settings) -> None:
        self._slot, self._grace_seconds = slot, settings.grace_seconds
        self._is_displaced = False
        self._database = Database(settings.resolved_database_url)
        self._doorbell = Doorbell(settings)
        self._job_log = JobLog(self._database, settings, max_lines=settings.log_lines)
        mailbox.install()
        self._app = make_app(settings)
        self._doorbell_check = DoorbellCheck(
            self._app, slot.slot_id, echo_seconds=settings.doorbell_seconds * max(1, settings.doorbell_rings)
        )
        self._runner_pool = RunnerPool(
            self._start_runner,
            policy=RetryPolicy(_ENTER_POLICY.max_attempts, settings.retry_seconds, settings.retry_max_seconds),
            start_seconds=_START_SECONDS,
            on_broken=lambda reason: self._heartbeat.broken(reason),
            on_ready=self._on_runner_ready,
            on_warm=lambda: self._heartbeat.beat_now(),
        )
        self._heartbeat = Heartbeat(
            self._database,
            settings,
            slot_id=slot.slot_id,
            incarnation=slot.incarnation,
            warm_models=lambda: self._runner_pool.warm_models,
            doorbell_check=self._doorbell_check,
            on_displaced=self._on_displaced,
            on_doorbell_works=self._doorbell.wake,
            on_doorbell_lost=self._on_doorbell_lost,
        )
        self._keeper = Keeper(
            self._database,
            settings,
            incarnation=slot.incarnation,
            runner_pool=self._runner_pool,
            job_log=self._job_log,
            doorbell=self._doorbell,
        )

    def serve(self) -> int:
        """Serve the slot until a signal ends this process.

        Returns:
            The exit status of the process.
        """
        self._runner_pool.open()  # the runner loads torch while the rest of this starts
        _enter(self._heartbeat)
        self._doorbell.wake()
        worker = _make_worker(self._app, self._slot.slot_id, self._on_ring)
        signals.worker_shutting_down.connect(self._on_shutdown, weak=False)
        worker.start()  # until a signal
        self._heartbeat.leave()
        self._heartbeat.join()
        self._runner_pool.close()
        self._job_log.end()
        self._doorbell.close()  # a last ring: the slot is gone
        self._database.close()
        logger.info("ended")
        return DISPLACED_STATUS if self._is_displaced else int(worker.exitcode or 0)

    def _start_runner(self, listen: Callable[[RunnerProcess, RunnerEvent], None]) -> RunnerProcess:
        return RunnerProcess(
            runner_command(self._slot.runner_module, device=self._slot.device, num_threads=self._slot.num_threads),
            runner_environment(os.environ, num_threads=self._slot.num_threads),
            listen=listen,
            log=self._job_log.line,
        )

    def _on_ring(self, rung: str) -> None:
        if not self._doorbell_check.is_echo(rung):
            self._keeper.run_lease(rung)

    def _on_runner_ready(self) -> None:
        self._heartbeat.mended()
        self._doorbell.wake()

    def _on_displaced(self) -> None:
        self._is_displaced = True
        self._keeper.abandon()
        os.kill(os.getpid(), signal.SIGTERM)

    def _on_doorbell_lost(self) -> None:
        self._keeper.stop()
        os.kill(os.getpid(), signal.SIGTERM)
        # A consumer that misses its doorbell may miss the signal too. The supervisor then starts the next worker.
        late = threading.Timer(self._grace_seconds + _DOORBELL_LOST_MARGIN_SECONDS, os._exit, (DOORBELL_LOST_STATUS,))
        late.daemon = True
        late.start()

    def _on_shutdown(self, **_: object) -> None:
        """Give the lease and the slot back. Called inside a signal handler, so it must not block."""
        self._keeper.stop()
        self._heartbeat.leave()


def _enter(heartbeat: Heartbeat) -> None:
    """Take over the slot, waiting for the database without limit. No message may be consumed before."""
    attempt = 0
    while True:
        try:
            return heartbeat.enter()
        except ServiceUnavailable as error:
            attempt += 1
            if attempt == 1:
                logger.warning("waiting for the database: %s", error)
            decision = decide(error, attempt, _ENTER_POLICY)
            assert isinstance(decision, RetryAt)
            threading.Event().wait(decision.delay_seconds)  # a signal ends the process, with nothing to clean up


def _make_worker(app: Celery, slot_id: str, run_lease: Callable[[str], None]) -> Worker:
    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def ring(lease_id: str) -> None:
        run_lease(lease_id)

    return _QuietWorker(
        app=app,
        hostname=f"{slot_id}@{socket.gethostname()}",
        queues=[queue_name(slot_id)],
        pool="threads",
        concurrency=1,
        task_events=False,
        without_gossip=True,  # none of these features is used, and each costs start time
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        loglevel="INFO",
        redirect_stdouts=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run as the child of the supervisor."""
    parser = argparse.ArgumentParser(prog="worker.keeper.app", description=__doc__)
    parser.add_argument("--slot", required=True, help="id of a registered slot")
    parser.add_argument("--incarnation", help="token of this process; generated if absent")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the runner")
    parser.add_argument("--runner-module", default=RUNNER_MODULE, help="module to run as the runner")
    arguments = parser.parse_args(argv)
    set_up_logging(arguments.slot)
    process.adopt_orphans()  # processes that a runner leaves behind are killed after it has ended
    warnings.simplefilter("ignore", SecurityWarning)  # it warns of pickle under root, but only JSON is accepted here
    signals.setup_logging.connect(_leave_logging_alone)
    slot = SlotProcess(
        slot_id=arguments.slot,
        incarnation=arguments.incarnation or new_id("worker"),
        device=arguments.device,
        num_threads=arguments.threads,
        runner_module=arguments.runner_module,
    )
    return SlotWorker(slot, Settings()).serve()


def _leave_logging_alone(**_: object) -> None:
    """Keep Celery from setting up logging, which it does unless its signal has a receiver."""


if __name__ == "__main__":
    sys.exit(main())
