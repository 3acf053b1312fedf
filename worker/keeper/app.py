"""The Celery worker of one slot: listens to the slot's queue, and gives each lease it is told of to the keeper."""

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
from worker.keeper.hearing import Hearing
from worker.keeper.heartbeat import Presence
from worker.keeper.joblog import JobLog
from worker.keeper.keeper import Keeper
from worker.keeper.runner_pool import Standby
from worker.keeper.runner_process import Heard, RunnerProcess
from worker.log_format import set_up_logging

logger = logging.getLogger(__name__)

DEAF_STATUS = 75
"""Exit status of a worker that its doorbell did not reach any more, and that did not end in order."""
_DEAF_MARGIN_SECONDS = 5.0
_START_SECONDS = 600.0  # a cold import of torch from a slow network disk takes minutes
_ENTER_POLICY = RetryPolicy(max_attempts=ENDLESS, first_seconds=0.25, max_seconds=5.0)


class _QuietWorker(Worker):  # type: ignore[misc]
    """Celery's worker with SIGTERM and SIGINT for an orderly end, and no banner, re-exec or debugger signals."""

    _wake_ends: tuple[socket.socket, socket.socket] | None = None

    def install_platform_tweaks(self, worker: Worker) -> None:
        for name in ("SIGTERM", "SIGINT"):
            install_worker_term_handler(worker, sig=name, verbose=False)

    def on_consumer_ready(self, consumer: object) -> None:
        """Have a signal wake Celery's loop, which would see that it is to end only at its next tick, up to 1 s later.

        Called after each connection to Redis, since losing one empties the loop.
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
    """What this process was started with."""

    slot_id: str
    incarnation: str
    device: str
    """`cuda` or `cpu`."""
    num_threads: int
    runner_module: str


def serve(slot: SlotProcess, settings: Settings) -> int:
    """Serve a slot until this process is told to end.

    Returns:
        Its exit status.
    """
    database = Database(settings.resolved_database_url)
    doorbell = Doorbell(settings)
    job_log = JobLog(database, settings)
    displaced = threading.Event()

    def start_runner(listen: Callable[[RunnerProcess, Heard], None]) -> RunnerProcess:
        return RunnerProcess(
            runner_command(slot.runner_module, device=slot.device, num_threads=slot.num_threads),
            runner_environment(os.environ, num_threads=slot.num_threads),
            listen=listen,
            log=job_log.line,
        )

    def runner_is_ready() -> None:
        presence.mended()
        doorbell.wake()

    def end_displaced() -> None:
        displaced.set()
        keeper.abandon()
        os.kill(os.getpid(), signal.SIGTERM)

    def end_deaf() -> None:
        keeper.stop()
        os.kill(os.getpid(), signal.SIGTERM)
        # What is deaf may not hear that either; the supervisor starts the next one once this is gone.
        late = threading.Timer(settings.grace_seconds + _DEAF_MARGIN_SECONDS, os._exit, (DEAF_STATUS,))
        late.daemon = True
        late.start()

    mailbox.install()
    app = make_app(settings)
    hearing = Hearing(app, slot.slot_id, patience_seconds=settings.doorbell_seconds * max(1, settings.doorbell_rings))
    standby = Standby(
        start_runner,
        policy=RetryPolicy(_ENTER_POLICY.max_attempts, settings.retry_seconds, settings.retry_max_seconds),
        start_seconds=_START_SECONDS,
        on_broken=lambda reason: presence.broken(reason),
        on_ready=runner_is_ready,
        on_warm=lambda: presence.beat_now(),
    )
    presence = Presence(
        database,
        settings,
        slot_id=slot.slot_id,
        incarnation=slot.incarnation,
        warm_models=lambda: standby.warm_models,
        hearing=hearing,
        on_displaced=end_displaced,
        on_heard=doorbell.wake,
        on_deaf=end_deaf,
    )
    keeper = Keeper(
        database,
        settings,
        incarnation=slot.incarnation,
        standby=standby,
        job_log=job_log,
        doorbell=doorbell,
    )
    standby.open()  # it loads torch while the rest of this starts
    _enter(presence)
    doorbell.wake()
    worker = _make_worker(app, slot.slot_id, lambda rung: None if hearing.is_echo(rung) else keeper.run_lease(rung))

    def begin_shutdown(**_: object) -> None:  # inside a signal handler: only what never blocks
        keeper.stop()
        presence.leave()

    signals.worker_shutting_down.connect(begin_shutdown, weak=False)
    worker.start()  # until a signal
    presence.leave()
    presence.join()
    standby.close()
    job_log.end()
    doorbell.close()  # a last ring: the slot is gone
    database.close()
    logger.info("ended")
    return DISPLACED_STATUS if displaced.is_set() else int(worker.exitcode or 0)


def _enter(presence: Presence) -> None:
    """Take the slot over, however long the database is away; nothing may be consumed before."""
    attempt = 0
    while True:
        try:
            return presence.enter()
        except ServiceUnavailable as error:
            attempt += 1
            if attempt == 1:
                logger.warning("waiting for the database: %s", error)
            verdict = decide(error, attempt, _ENTER_POLICY)
            assert isinstance(verdict, RetryAt)
            threading.Event().wait(verdict.delay_seconds)  # a signal ends the process, there is nothing to tidy yet


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
        without_gossip=True,  # nobody listens, and all of them cost start time
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
    parser.add_argument("--incarnation", help="token of this process; made up when absent")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the runner")
    parser.add_argument("--runner-module", default=RUNNER_MODULE, help="the module that is run as the runner")
    arguments = parser.parse_args(argv)
    set_up_logging(arguments.slot)
    process.adopt_orphans()  # what a runner leaves behind is killed when the runner is gone
    warnings.simplefilter("ignore", SecurityWarning)  # about pickle under root; nothing but JSON is accepted here
    signals.setup_logging.connect(_leave_logging_alone)
    slot = SlotProcess(
        slot_id=arguments.slot,
        incarnation=arguments.incarnation or new_id("worker"),
        device=arguments.device,
        num_threads=arguments.threads,
        runner_module=arguments.runner_module,
    )
    return serve(slot, Settings())


def _leave_logging_alone(**_: object) -> None:
    """Celery sets logging up by itself unless somebody answers its signal."""


if __name__ == "__main__":
    sys.exit(main())
