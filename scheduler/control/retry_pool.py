"""Pools of threads that process job ids beside the service's loop and retry what fails."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from jobs.errors import ServiceUnavailable, StokerError
from jobs.retries import GiveUp, RetryAt, RetryPolicy, decide

logger = logging.getLogger(__name__)

_MOST_FAULTS = 5  # retries of one job after a bug in Stoker (an exception outside the error tree)


@dataclass(slots=True)
class _Failure:
    """The state of a job whose last try failed."""

    tries: int
    faults: int
    retry_at: float  # monotonic seconds
    reason: str


class RetryPool:
    """Processes the jobs it is offered, each in at most one thread at a time.

    It keeps no state that matters: an unfinished job is simply offered again in the next round, by this scheduler or
    its successor. So its threads may be cut off at any point.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[str], None],
        *,
        num_threads: int,
        retry_policy: RetryPolicy,
        on_failure: Callable[[str, StokerError], None],
        on_give_up: Callable[[str, StokerError], None],
        on_done: Callable[[], object],
    ) -> None:
        """
        Args:
            name: Name of the duty, for threads and log lines.
            work: Processes one job; machine errors are retried while the job is offered.
            num_threads: Number of jobs that are processed at once.
            retry_policy: How often and after which pauses a job is retried.
            on_failure: Called with the reason when a job will be retried, once per reason in a row.
            on_give_up: Called when a retry cannot help or the retries are used up.
            on_done: Called after each job that was finished or given up.
        """
        self._name = name
        self._work = work
        self._retry_policy = retry_policy
        self._on_failure = on_failure
        self._on_give_up = on_give_up
        self._on_done = on_done
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self._failures: dict[str, _Failure] = {}
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def offer(self, job_ids: Iterable[str]) -> None:
        """Enqueue jobs. A job that is enqueued already, or waits for its retry, is skipped.

        Args:
            job_ids: All jobs that need processing now, the most urgent first; the state of other jobs is dropped.
        """
        wanted = list(job_ids)
        now = time.monotonic()
        with self._lock:
            still = set(wanted)
            self._failures = {job_id: failure for job_id, failure in self._failures.items() if job_id in still}
            for job_id in wanted:
                failure = self._failures.get(job_id)
                if job_id in self._taken or (failure is not None and now < failure.retry_at):
                    continue
                self._taken.add(job_id)
                self._waiting.put(job_id)

    @property
    def num_waiting(self) -> int:
        """Number of jobs that wait for a retry."""
        return len(self._failures)

    def stop(self) -> None:
        """Start nothing new, also of what is enqueued. Returns at once."""
        self._closed = True
        for _ in self._threads:
            self._waiting.put(None)

    def join(self, deadline: float) -> None:
        """After `stop`, wait for running jobs up to a time, in monotonic seconds."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("%s was stopped during a job, which will be processed again", self._name)

    def _run(self) -> None:
        while (job_id := self._waiting.get()) is not None and not self._closed:
            is_over = self._try(job_id)
            with self._lock:
                self._taken.discard(job_id)
                if is_over:
                    self._failures.pop(job_id, None)
            if is_over and not self._closed:
                self._on_done()

    def _try(self, job_id: str) -> bool:
        """Process a job once. Returns whether it is finished or given up."""
        failure = self._failures.get(job_id) or _Failure(0, 0, 0.0, "")
        failure.tries += 1
        try:
            self._work(job_id)
            return True
        except StokerError as error:
            cause = error
        except Exception:  # an edge: a bug in one job must not stop the others
            logger.exception("%s of %s failed", self._name, job_id)
            failure.faults += 1
            cause = StokerError(f"an internal error stopped this job ({self._name}); see the scheduler's log")
            cause.retryable = failure.faults < _MOST_FAULTS
        decision = decide(cause, failure.tries, self._retry_policy)
        try:
            if isinstance(decision, GiveUp):
                logger.error("gave up %s of %s: %s", self._name, job_id, decision.reason)
                self._on_give_up(job_id, cause)
                return True
            logger.warning("%s of %s will be retried in %.1f s: %s", self._name, job_id, decision.delay_seconds, cause)
            if cause.message != failure.reason:
                self._on_failure(job_id, cause)
                failure.reason = cause.message
        except ServiceUnavailable as error:
            logger.warning("%s of %s: cannot record the failure yet: %s", self._name, job_id, error)
        except Exception:  # the same edge: this thread must go on for the other jobs
            logger.exception("%s of %s: cannot record the failure", self._name, job_id)
        pause_seconds = decision.delay_seconds if isinstance(decision, RetryAt) else self._retry_policy.max_seconds
        failure.retry_at = time.monotonic() + pause_seconds
        with self._lock:
            self._failures[job_id] = failure
        return False


class PoolGroup:
    """Pools that are closed together at the end of a `with` block: all at once, not each after the one before."""

    def __init__(self) -> None:
        self._members: list[tuple[RetryPool, float]] = []
        self._stopped_at: float | None = None

    def add(self, pool: RetryPool, grace_seconds: float) -> RetryPool:
        """Add a pool, whose running jobs have so many seconds to end, counted from when the group was stopped."""
        self._members.append((pool, grace_seconds))
        return pool

    def stop(self) -> None:
        """Start nothing new in any pool. Returns at once."""
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
        for pool, _ in self._members:
            pool.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert self._stopped_at is not None
        for pool, grace_seconds in self._members:
            pool.join(self._stopped_at + grace_seconds)
