"""A few threads that work on jobs one by one beside the service's loop, trying again what fails, patiently."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jobs.errors import ServiceUnavailable, StokerError
from jobs.retries import GiveUp, RetryAt, RetryPolicy, decide

logger = logging.getLogger(__name__)

_MOST_FAULTS = 5  # times that a fault of ours (an exception outside the error tree) is tried again on one job


@dataclass(slots=True)
class _Trouble:
    """What is remembered of a job whose last try failed."""

    tries: int
    faults: int
    rests_until: float  # monotonic seconds
    reason: str


class Workbench:
    """Works on whatever jobs are laid on it, each in one thread at a time.

    It remembers nothing that matters: a job that is still to be done is simply laid on it again at the next sweep, by
    this scheduler or by its successor. So its threads may be cut off at any point.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[str], None],
        *,
        num_threads: int,
        patience: RetryPolicy,
        on_trouble: Callable[[str, StokerError], None],
        give_up: Callable[[str, StokerError], None],
        on_done: Callable[[], object],
    ) -> None:
        """
        Args:
            name: of the duty, for threads and log lines.
            work: does one job; an error of the machine is tried again as long as the job is laid on the bench.
            num_threads: how many jobs are worked on at once.
            patience: how often and after which pauses a job is tried again.
            on_trouble: told why a job will be tried again, once for each reason in a row.
            give_up: called where trying again cannot help, or was done often enough.
            on_done: called after each job that was done or given up.
        """
        self._name = name
        self._work = work
        self._patience = patience
        self._on_trouble = on_trouble
        self._give_up = give_up
        self._on_done = on_done
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self._troubles: dict[str, _Trouble] = {}
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def lay(self, job_ids: Iterable[str]) -> None:
        """Lay jobs on the bench; one that is there already, or rests after a failure, is left alone.

        Args:
            job_ids: all jobs that are to be done now, the most urgent first; what is known of others is forgotten.
        """
        wanted = list(job_ids)
        now = time.monotonic()
        with self._lock:
            still = set(wanted)
            self._troubles = {job_id: trouble for job_id, trouble in self._troubles.items() if job_id in still}
            for job_id in wanted:
                trouble = self._troubles.get(job_id)
                if job_id in self._taken or (trouble is not None and now < trouble.rests_until):
                    continue
                self._taken.add(job_id)
                self._waiting.put(job_id)

    @property
    def num_resting(self) -> int:
        """Jobs that rest after a failure."""
        return len(self._troubles)

    def close(self, timeout_seconds: float) -> None:
        """Begin nothing more, and wait a while for what is under way."""
        self._closed = True
        for _ in self._threads:
            self._waiting.put(None)
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("%s is cut off in the middle of a job; it will be done again", self._name)

    def _run(self) -> None:
        while (job_id := self._waiting.get()) is not None and not self._closed:
            is_over = self._try(job_id)
            with self._lock:
                self._taken.discard(job_id)
                if is_over:
                    self._troubles.pop(job_id, None)
            if is_over and not self._closed:
                self._on_done()

    def _try(self, job_id: str) -> bool:
        """Work on a job once. Returns whether there is nothing more to do for it now."""
        trouble = self._troubles.get(job_id) or _Trouble(0, 0, 0.0, "")
        trouble.tries += 1
        try:
            self._work(job_id)
            return True
        except StokerError as error:
            cause = error
        except Exception:  # one of the service's duty loops: a fault in one job must not end the work on all others
            logger.exception("%s of %s failed", self._name, job_id)
            trouble.faults += 1
            cause = StokerError(f"a fault in Stoker keeps this job from going on ({self._name}); the log says more")
            cause.retryable = trouble.faults < _MOST_FAULTS
        verdict = decide(cause, trouble.tries, self._patience)
        try:
            if isinstance(verdict, GiveUp):
                logger.error("%s of %s is given up: %s", self._name, job_id, verdict.reason)
                self._give_up(job_id, cause)
                return True
            logger.warning("%s of %s is tried again in %.1f s: %s", self._name, job_id, verdict.delay_seconds, cause)
            if cause.message != trouble.reason:
                self._on_trouble(job_id, cause)
                trouble.reason = cause.message
        except ServiceUnavailable as error:
            logger.warning("%s of %s: what happened to it could not be written down yet: %s", self._name, job_id, error)
        except Exception:  # the same edge: this thread must live on for the other jobs
            logger.exception("%s of %s: what happened to it could not be written down", self._name, job_id)
        pause_seconds = verdict.delay_seconds if isinstance(verdict, RetryAt) else self._patience.max_seconds
        trouble.rests_until = time.monotonic() + pause_seconds
        with self._lock:
            self._troubles[job_id] = trouble
        return False
