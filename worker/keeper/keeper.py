"""Holds one lease at a time: activates it, passes it to the runner, renews it, relays stops, and records its end."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from jobs.config.times import LeaseTimes
from jobs.db.database import Database
from jobs.db.states import StopReason
from jobs.errors import LostLease, ServiceUnavailable
from jobs.ledger import jobs as job_ledger
from jobs.ledger import leases
from jobs.ledger.leases import RunnerActivity, WorkingLease
from jobs.queue import Doorbell
from jobs.retries import ENDLESS, RetryAt, RetryPolicy, decide
from worker.keeper.decisions import (
    Ending,
    EndRecord,
    Event,
    HeldLease,
    RenewalRefused,
    Renewed,
    Rules,
    RunnerAction,
    StartLease,
    StopAsked,
)
from worker.keeper.gang_member import hold_place
from worker.keeper.gang_watch import watching
from worker.keeper.joblog import JobLog
from worker.keeper.runner_pool import RunnerPool, RunnerUp
from worker.keeper.runner_process import RunnerProcess
from worker.wire.protocol import Run, StopLease

logger = logging.getLogger(__name__)

_HELD = "keeping the device free for its gang"
_Inbox = queue.SimpleQueue[Event]  # its `put` may be called from a signal handler


class Keeper:
    """The part of a slot's Celery worker that holds the lease. All its decisions are made in `decisions`."""

    def __init__(
        self,
        database: Database,
        times: LeaseTimes,
        *,
        incarnation: str,
        runner_pool: RunnerPool,
        job_log: JobLog,
        doorbell: Doorbell,
    ) -> None:
        self._database, self._times, self._incarnation = database, times, incarnation
        self._runner_pool, self._job_log, self._doorbell = runner_pool, job_log, doorbell
        # There is no limit on how long to wait for a service that cannot be reached.
        self._outage_policy = RetryPolicy(ENDLESS, times.retry_seconds, times.retry_max_seconds)
        self._num_outages = 0  # in a row
        self._inbox: _Inbox | None = None
        self._last_word: StopAsked | RenewalRefused | None = None
        self._doing: tuple[str, float] | None = None
        """A description of what the runner is doing, and since when (monotonic seconds)."""

    def run_lease(self, lease_id: str) -> None:
        """Hold a lease from its message to its end. A duplicate or late message does nothing.

        Args:
            lease_id: The id of the lease, which is the whole content of the message.
        """
        asked_at = time.monotonic()
        try:
            lease = leases.activate(
                self._database, lease_id, self._incarnation, lease_seconds=self._times.lease_seconds
            )
        except ServiceUnavailable as error:
            logger.warning("lease %s is not taken up, its doorbell will ring again: %s", lease_id, error)
            return
        if lease is None:
            logger.debug("lease %s: a duplicate or late message is dropped", lease_id)
            return
        inbox: _Inbox = queue.SimpleQueue()
        self._doing = ("starting a runner" if lease.rank == 0 else _HELD, asked_at)
        if lease.rank == 0:
            self._job_log.open(lease)
        with ExitStack() as stack:
            stack.enter_context(self._listening(inbox))
            stack.enter_context(self._renewing(lease_id, inbox))
            if lease.gang_id is not None:
                stack.enter_context(watching(self._database, lease_id, inbox.put))
            if lease.rank == 0:
                ending = self._hold(lease, inbox, asked_at)
            else:
                ending = hold_place(
                    lease,
                    inbox,
                    asked_at,
                    database=self._database,
                    times=self._times,
                    runner_pool=self._runner_pool,
                )
            if ending.pause:
                self._sit_out(ending, inbox)
            else:
                self._num_outages = 0
        self._job_log.close()
        self._settle(lease, ending)
        self._doorbell.wake()

    def stop(self) -> None:
        """Give back the current lease, and any later one, in order. Safe inside a signal handler."""
        self._leave(StopAsked(StopReason.SHUTDOWN))

    def abandon(self) -> None:
        """Kill the runner, because the slot and its leases now belong to another process."""
        self._leave(RenewalRefused())

    def _leave(self, word: StopAsked | RenewalRefused) -> None:
        self._last_word = word
        if (inbox := self._inbox) is not None:
            inbox.put(word)

    # -- the current lease

    def _hold(self, lease: WorkingLease, inbox: _Inbox, asked_at: float) -> Ending:
        """Follow the lease to its end. If the runner had to be killed, that is done before this returns."""
        held = HeldLease(Rules.of(self._times), held_until=asked_at + self._times.lease_seconds)
        runner: RunnerProcess | None = None
        try:
            while (ending := held.overdue(time.monotonic())) is None:
                try:
                    what = inbox.get(timeout=max(0.0, held.due() - time.monotonic()))
                except queue.Empty:
                    continue
                held, decision = held.on_event(what, time.monotonic())
                if held.handed_over:
                    self._doing = _in_words(held)
                if isinstance(what, RunnerUp) and decision is not None:
                    runner = what.runner
                if isinstance(decision, Ending):
                    ending = decision
                    break
                if runner is not None:
                    match decision:
                        case StartLease():
                            runner.give(Run(lease))
                        case StopLease():
                            runner.give(decision)
        except BaseException:  # a bug here must not leave a runner that is not watched
            if runner is not None:
                runner.kill()
            raise
        if ending.runner_action is RunnerAction.KILL and runner is not None:
            logger.warning("lease %s: the runner is killed: %s", lease.lease_id, ending.reason)
            self._runner_pool.replace(runner)
        return ending

    @contextmanager
    def _listening(self, inbox: _Inbox) -> Iterator[None]:
        self._inbox = inbox
        if self._last_word is not None:
            inbox.put(self._last_word)
        self._runner_pool.attach(inbox.put)
        try:
            yield
        finally:
            self._runner_pool.detach()
            self._inbox = None

    @contextmanager
    def _renewing(self, lease_id: str, inbox: _Inbox) -> Iterator[None]:
        """Renew the lease in a separate thread, since the database may take longer to answer than the lease lasts."""
        ended = threading.Event()
        lease_seconds = self._times.lease_seconds

        def renew() -> None:
            while not ended.wait(lease_seconds / 4):
                asked_at = time.monotonic()
                try:
                    doing = self._doing
                    told = None if doing is None else RunnerActivity(doing[0], asked_at - doing[1])
                    renewal = leases.renew(self._database, lease_id, lease_seconds=lease_seconds, doing=told)
                except LostLease:
                    inbox.put(RenewalRefused())
                    return
                except ServiceUnavailable as error:
                    logger.warning("lease %s is not renewed: %s", lease_id, error)
                else:
                    inbox.put(Renewed(asked_at, renewal.stop))

        threading.Thread(target=renew, name="renewals", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _sit_out(self, ending: Ending, inbox: _Inbox) -> None:
        """Keep the lease for a while, because it would be granted and fail again if it were given back at once."""
        self._num_outages += 1
        assert ending.error is not None
        verdict = decide(ending.error, self._num_outages, self._outage_policy)
        seconds = verdict.delay_seconds if isinstance(verdict, RetryAt) else self._outage_policy.max_seconds
        logger.warning("a service is away, waiting %.1f s: %s", seconds, ending.reason)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                what = inbox.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(what, StopAsked | RenewalRefused) or (isinstance(what, Renewed) and what.stop is not None):
                return

    # -- its end

    def _settle(self, lease: WorkingLease, ending: Ending) -> None:
        """Record how the lease ended. If that fails, the lease expires, and the reaper deals with its work."""
        if ending.error is not None:
            logger.warning("lease %s of job %s: %s", lease.lease_id, lease.job_id, ending.reason)
        try:
            match ending.record:
                case EndRecord.RELEASE:
                    leases.release(self._database, lease.lease_id, ending.reason, error=ending.error)
                case EndRecord.FAIL_JOB:
                    assert ending.error is not None
                    job_ledger.fail(self._database, lease.job_id, ending.error)
                    leases.release(self._database, lease.lease_id, ending.reason)
                case EndRecord.CRASH:
                    assert ending.error is not None
                    leases.crash(
                        self._database,
                        lease.lease_id,
                        ending.error,
                        computing=ending.computing,
                        retries=self._times,
                    )
                case EndRecord.NOTHING:
                    pass
        except LostLease:
            logger.info("lease %s was over already", lease.lease_id)
        except ServiceUnavailable as error:
            logger.warning("the end of lease %s could not be recorded, it will expire: %s", lease.lease_id, error)


def _in_words(held: HeldLease) -> tuple[str, float] | None:
    """A description of what the runner is doing, and since when; None while it waits."""
    foremost = held.foremost
    return None if foremost is None else (foremost.in_words, foremost.since)
