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
from jobs.ledger.leasing import leases
from jobs.ledger.leasing.leases import RunnerActivity, WorkingLease
from jobs.ledger.leasing.next_job import release_and_take_next
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
    StopRequested,
)
from worker.keeper.gang_member import hold_place
from worker.keeper.gang_watch import watching
from worker.keeper.joblog import JobLog
from worker.keeper.runner_pool import RunnerPool, RunnerUp
from worker.keeper.runner_process import RunnerProcess
from worker.wire.protocol import Run, StopLease

logger = logging.getLogger(__name__)

_HELD = "keeping the device free for its gang"
TAKES_NEXT_SECONDS = 2.0
"""Time from the doorbell during which the slot goes on with further jobs of the same model. Then the scheduler decides
again, so that no job waits longer than this for younger ones."""
RENEWALS_PER_LEASE = 4.0
"""How many times a lease is renewed in the time after which it would expire."""
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
        self._last_request: StopRequested | RenewalRefused | None = None
        self._doing: tuple[str, float] | None = None
        """A description of what the runner is doing, and since when (monotonic seconds)."""

    def run_lease(self, lease_id: str) -> None:
        """Hold a lease from its message to its end. A duplicate or late message does nothing.

        Args:
            lease_id: The id of the lease, which is the whole content of the message.
        """
        sent_at = time.monotonic()
        try:
            lease = leases.activate(
                self._database, lease_id, self._incarnation, lease_seconds=self._times.lease_seconds
            )
        except ServiceUnavailable as error:
            logger.warning("lease %s could not be activated; its doorbell will ring again: %s", lease_id, error)
            return
        if lease is None:
            logger.debug("lease %s: a duplicate or late message is dropped", lease_id)
            return
        began = sent_at
        while lease is not None:
            ending = self._hold_to_end(lease, sent_at)
            sent_at = time.monotonic()
            lease = self._record_end(lease, ending, takes_next=sent_at - began < TAKES_NEXT_SECONDS)
            self._doorbell.wake()

    def stop(self) -> None:
        """Give back the current lease, and any later one, in order. Safe inside a signal handler."""
        self._end_leases(StopRequested(StopReason.SHUTDOWN))

    def abandon(self) -> None:
        """Kill the runner, because the slot and its leases now belong to another process."""
        self._end_leases(RenewalRefused())

    def _end_leases(self, request: StopRequested | RenewalRefused) -> None:
        self._last_request = request
        if (inbox := self._inbox) is not None:
            inbox.put(request)

    # -- the current lease

    def _hold_to_end(self, lease: WorkingLease, sent_at: float) -> Ending:
        """Hold an active lease until it must end. `sent_at` is when its activation was requested."""
        inbox: _Inbox = queue.SimpleQueue()
        self._doing = ("starting a runner" if lease.rank == 0 else _HELD, sent_at)
        if lease.rank == 0:
            self._job_log.open(lease)
        with ExitStack() as stack:
            stack.enter_context(self._listening(inbox))
            stack.enter_context(self._renewing(lease.lease_id, inbox))
            if lease.gang_id is not None:
                stack.enter_context(watching(self._database, lease.lease_id, inbox.put))
            if lease.rank == 0:
                ending = self._hold(lease, inbox, sent_at)
            else:
                ending = hold_place(
                    lease,
                    inbox,
                    sent_at,
                    database=self._database,
                    times=self._times,
                    runner_pool=self._runner_pool,
                )
            if ending.pause:
                self._wait_for_service(ending, inbox)
            else:
                self._num_outages = 0
        self._job_log.close()
        return ending

    def _hold(self, lease: WorkingLease, inbox: _Inbox, sent_at: float) -> Ending:
        """Follow the lease to its end. If the runner had to be killed, that is done before this returns."""
        held = HeldLease(Rules.of(self._times), held_until=sent_at + self._times.lease_seconds)
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
        if self._last_request is not None:
            inbox.put(self._last_request)
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
            while not ended.wait(lease_seconds / RENEWALS_PER_LEASE):
                sent_at = time.monotonic()
                try:
                    doing = self._doing
                    activity = None if doing is None else RunnerActivity(doing[0], sent_at - doing[1])
                    renewal = leases.renew(self._database, lease_id, lease_seconds=lease_seconds, doing=activity)
                except LostLease:
                    inbox.put(RenewalRefused())
                    return
                except ServiceUnavailable as error:
                    logger.warning("lease %s could not be renewed: %s", lease_id, error)
                else:
                    inbox.put(Renewed(sent_at, renewal.stop))

        threading.Thread(target=renew, name="renewals", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _wait_for_service(self, ending: Ending, inbox: _Inbox) -> None:
        """Keep the lease for a while, because it would be granted and fail again if it were given back at once."""
        self._num_outages += 1
        assert ending.error is not None
        decision = decide(ending.error, self._num_outages, self._outage_policy)
        seconds = decision.delay_seconds if isinstance(decision, RetryAt) else self._outage_policy.max_seconds
        logger.warning("a service is unavailable; waiting %.1f s: %s", seconds, ending.reason)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                what = inbox.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(what, StopRequested | RenewalRefused) or (
                isinstance(what, Renewed) and what.stop is not None
            ):
                return

    # -- its end

    def _record_end(self, lease: WorkingLease, ending: Ending, *, takes_next: bool) -> WorkingLease | None:
        """Record how the lease ended. If that fails, the lease expires, and the reaper deals with its work.

        Args:
            takes_next: Whether the slot may go on with the next job of the same model.

        Returns:
            The active lease of the next job, if there is one.
        """
        if ending.error is not None:
            logger.warning("lease %s of job %s: %s", lease.lease_id, lease.job_id, ending.reason)
        try:
            match ending.record:
                case EndRecord.DRAINED if takes_next and self._last_request is None:
                    return release_and_take_next(
                        self._database,
                        lease.lease_id,
                        ending.reason,
                        lease_seconds=self._times.lease_seconds,
                        incarnation=self._incarnation,
                    )
                case EndRecord.RELEASE | EndRecord.DRAINED:
                    leases.release(self._database, lease.lease_id, ending.reason, error=ending.error)
                case EndRecord.FAIL_JOB:
                    assert ending.error is not None
                    leases.fail_job(self._database, lease.lease_id, ending.error)
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
            logger.info("lease %s had already ended", lease.lease_id)
        except ServiceUnavailable as error:
            logger.warning(
                "the end of lease %s could not be recorded; the lease will expire: %s", lease.lease_id, error
            )
        return None


def _in_words(held: HeldLease) -> tuple[str, float] | None:
    """A description of what the runner is doing, and since when; None while it waits."""
    foremost = held.foremost
    return None if foremost is None else (foremost.in_words, foremost.since)
