"""The whole scheduler on a real database and a real Redis, with workers driven by the test."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import process
from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Job
from jobs.ledger import jobs as job_ledger
from jobs.ledger.records import history
from jobs.queue import Doorbell, make_app
from jobs.specs.inference import parse_spec
from scheduler.control.service import Service
from tests.conftest import wait_until
from tests.support.ledger import job_state
from tests.support.manual_worker import ManualWorker
from tests.support.rows import write_rows


class LiveScheduler:
    """A database, a Redis, a store and the services that use them, without a real worker."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.db = settings, database
        self.store = Store(settings.resolved_store_url)
        self.doorbell = Doorbell(settings)
        self._closing: list[Callable[[], object]] = [self.doorbell.close]
        self._stopping = threading.Event()

    def service(self) -> Service:
        app = make_app(self.settings)
        service = Service(self.settings, self.db, self.store, app)
        self._closing += [service.stop, app.close]
        return service

    def worker(self, slot_id: str = "s0") -> ManualWorker:
        worker = ManualWorker(slot_id, self.db, self.store, self.settings)
        self._closing.append(worker.close)
        return worker

    def serve(self, *slot_ids: str) -> None:
        for slot_id in slot_ids:
            thread = self.worker(slot_id).serve(self.doorbell, self._stopping.is_set)
            self._closing.append(thread.join)

    def submit(self, path: Path, num_rows: int = 100, **fields: Any) -> str:
        if not path.exists():
            write_rows(path, num_rows)
        document = {"task": "text-classification", "model": "org/name", "input": {"path": str(path)}, **fields}
        job = job_ledger.submit(self.db, parse_spec(document))
        self.doorbell.wake()
        return job.id

    def job(self, job_id: str) -> Job:
        with self.db.read() as session:
            return job_ledger.get(session, job_id)

    def wait_for(self, job_id: str, state: JobState) -> Job:
        wait_until(lambda: job_state(self.db, job_id) == state, f"the job is {state}")
        return self.job(job_id)

    def events(self, job_id: str) -> list[str]:
        with self.db.read() as session:
            return [event.name for event in history.events(session, job_id)]

    def close(self) -> None:
        self._stopping.set()
        for close in reversed(self._closing):
            close()


_SCHEDULER = """
import sys
from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.queue import make_app
from scheduler.control.service import Service
settings = Settings.model_validate_json(sys.stdin.readline())
database, store = Database(settings.resolved_database_url), Store(settings.resolved_store_url)
Service(settings, database, store, make_app(settings)).run()
"""
_BLOCKED = """
import threading
from jobs.ledger import planning
def held(chunks):
    for number, chunk in enumerate(chunks):
        if number == 20_000:
            threading.Event().wait()
        yield chunk
plan = planning.plan
planning.plan = lambda db, job_id, chunks, **options: plan(db, job_id, held(chunks), **options)
"""


def start_scheduler(settings: Settings, *, before: str = "") -> subprocess.Popen[bytes]:
    """Start a scheduler in a process of its own, which runs the code `before` first."""
    child = process.spawn([sys.executable, "-c", before + _SCHEDULER], stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(settings.model_dump_json().encode() + b"\n")
    child.stdin.close()
    return child


def start_process(settings: Settings) -> subprocess.Popen[bytes]:
    """Start a scheduler that blocks in the middle of planning a job of more than 20,000 chunks."""
    return start_scheduler(settings, before=_BLOCKED)
