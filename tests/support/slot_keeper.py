"""One slot's keeper with a stand-in runner, inside the test's own process, and jobs and leases for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.tables import Lease
from jobs.ledger import overdue, slots
from jobs.ledger.leasing import grants
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.logs import lines_of
from jobs.queue import Doorbell
from jobs.retries import RetryPolicy
from tests.support.leased_job import LeasedJob
from worker.children import runner_command, runner_environment
from worker.keeper.joblog import JobLog
from worker.keeper.keeper import Keeper
from worker.keeper.runner_pool import RunnerPool
from worker.keeper.runner_process import RunnerProcess

SLOT = "here-cpu0"


class SlotKeeper:
    """One slot's keeper, inside the test's own process."""

    def __init__(self, settings: Settings, database: Database, *, start_seconds: float) -> None:
        self.settings, self.database = settings, database
        self.runners: list[RunnerProcess] = []
        self.broken: list[str] = []
        self.ready = threading.Semaphore(0)
        self.job_log = JobLog(database, settings, max_lines=settings.log_lines)
        self.doorbell = Doorbell(settings)
        self.runner_pool = RunnerPool(
            self._start,
            policy=RetryPolicy(1, settings.retry_seconds, settings.retry_max_seconds),
            start_seconds=start_seconds,
            on_broken=self.broken.append,
            on_ready=self.ready.release,
            on_warm=lambda: None,
        )
        self.keeper = Keeper(
            database,
            settings,
            incarnation="worker-1",
            runner_pool=self.runner_pool,
            job_log=self.job_log,
            doorbell=self.doorbell,
        )
        slots.register(database, [slots.SlotInfo(SLOT, "here", "cpu", None, "CPU", 0, 1)])
        slots.enter(database, SLOT, "worker-1", settings)
        self.runner_pool.open()

    def _start(self, listen: Callable[..., None]) -> RunnerProcess:
        runner = RunnerProcess(
            runner_command("tests.support.standin_runner", device="cpu", num_threads=1),
            runner_environment(os.environ, num_threads=1),
            listen=listen,
            log=self.job_log.line,
        )
        self.runners.append(runner)
        return runner

    def close(self) -> None:
        self.runner_pool.close()
        self.job_log.end()
        self.doorbell.close()

    # -- one job and its leases

    def job(self, tmp_path: Path, model: str, *, num_rows: int = 4, chunk_rows: int = 2) -> LeasedJob:
        records = [{"id": f"r{row}", "text": f"text {row}"} for row in range(num_rows)]
        return LeasedJob(self.database, self.settings, tmp_path, records, chunk_rows=chunk_rows, model=model)

    def grant(self, job: LeasedJob) -> str:
        overdue.requeue_idle(self.database)
        grant = Grant(job.job_id, (SLOT,))
        return grants.grant(self.database, grant, lease_seconds=self.settings.lease_seconds)[0]

    def run(self, job: LeasedJob) -> Lease:
        """Grant a lease and run it to its end."""
        lease_id = self.grant(job)
        self.keeper.run_lease(lease_id)
        return self.lease(lease_id)

    @contextmanager
    def running(self, job: LeasedJob) -> Iterator[str]:
        """Run a lease in a separate thread, and wait for its end after the block."""
        lease_id = self.grant(job)
        thread = threading.Thread(target=self.keeper.run_lease, args=(lease_id,), daemon=True)
        thread.start()
        try:
            yield lease_id
        except BaseException:  # the thread must end before the failing test closes the database
            self.keeper.abandon()
            thread.join(300)
            raise
        thread.join(300)
        assert not thread.is_alive(), "the keeper still holds the lease"

    def lease(self, lease_id: str) -> Lease:
        with self.database.read() as session:
            return session.get_one(Lease, lease_id)

    def leases_of(self, job: LeasedJob) -> list[Lease]:
        with self.database.read() as session:
            return list(session.scalars(select(Lease).where(col(Lease.job_id) == job.job_id)))

    def log(self, job: LeasedJob) -> list[str]:
        with self.database.read() as session:
            return [line.line for line in lines_of(session, job.job_id, limit=100_000)]
