"""The scheduler's duties called one by one, under a clock that the test sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery
from sqlalchemy import select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.rows import Result
from jobs.data.sinks import open_sink
from jobs.data.sources import ChunkRange
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState, LeaseState
from jobs.db.tables import Lease
from jobs.ledger import chunks, planning, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.slots import Ownership
from jobs.specs.inference import parse_spec
from jobs.specs.needs import NO_NEEDS, Needs
from scheduler.control.dispatch.dispatcher import dispatch
from scheduler.control.finalizer import finalize_job
from scheduler.control.reaper import reap
from scheduler.control.retention import retain
from tests.support.ledger import job_state

_SLOT = {
    "host": "host", "device": "cpu", "device_uuid": None, "name": "CPU", "memory_bytes": 0, "num_threads": 1,
}  # fmt: skip


class ManualScheduler:
    """A database with the test's own clock, a store, and slots without workers."""

    def __init__(self, db: Database, settings: Settings, store: Store, app: Celery) -> None:
        self.db, self.settings, self.store, self.app = db, settings, store, app
        self.time = 1_000_000.0

    def clock(self) -> float:
        return self.time

    def online(self, *slot_ids: str, packages: Sequence[str] | None = None, **info: Any) -> None:
        slots.register(
            self.db, [slots.SlotInfo(**(_SLOT | {"id": slot_id, "packages": packages} | info)) for slot_id in slot_ids]
        )
        for slot_id in slot_ids:
            slots.enter(self.db, slot_id, slot_id, self.settings)

    def beat(self, *slot_ids: str, warm: tuple[str, ...] = ()) -> None:
        for slot_id in slot_ids:
            assert slots.beat(self.db, slot_id, slot_id, warm) is Ownership.OWNER

    def job(self, num_chunks: int = 4, *, needs: Needs = NO_NEEDS, **fields: Any) -> str:
        document = {"task": "text-classification", "model": "org/name", "input": {"path": "rows.jsonl"}, **fields}
        job = job_ledger.submit(self.db, parse_spec(document))
        if num_chunks:
            ranges = [ChunkRange(number * 10, number * 10 + 10, {}) for number in range(num_chunks)]
            planning.plan(self.db, job.id, ranges, needs=needs)
        return job.id

    def dispatch(self) -> int:
        return dispatch(self.db, self.app, self.settings, self.settings.projects)

    def reap(self) -> None:
        reap(self.db, self.app, self.settings)

    def retain(self) -> None:
        retain(self.db, self.store, self.settings)

    def live(self) -> dict[str, str]:
        """Slot id -> job id of every live lease."""
        with self.db.read() as session:
            query = select(Lease).where(col(Lease.state).in_((LeaseState.GRANTED, LeaseState.ACTIVE)))
            return {lease.slot_id: lease.job_id for lease in session.scalars(query)}

    def lease_on(self, slot_id: str) -> Lease:
        """The live lease on a slot."""
        live = (LeaseState.GRANTED, LeaseState.ACTIVE)
        with self.db.read() as session:
            return session.scalars(select(Lease).where(col(Lease.slot_id) == slot_id, col(Lease.state).in_(live))).one()

    def activate(self, slot_id: str) -> str:
        lease_id = self.lease_on(slot_id).id
        seconds = self.settings.lease_seconds
        assert leases.activate(self.db, lease_id, slot_id, lease_seconds=seconds) is not None
        return lease_id

    def finish(self, job_id: str, slot_id: str) -> None:
        """Record every chunk of a job under a lease on the slot, release it and complete the job."""
        grants.grant(self.db, Grant(job_id, (slot_id,)), lease_seconds=30.0)
        lease_id = self.activate(slot_id)
        with self.db.read() as session:
            spec = parse_spec(job_ledger.get(session, job_id).spec)
        sink = open_sink(spec.output, vector_output=False, database=self.db, store=self.store)
        for claim in chunks.claim(self.db, lease_id, limit=1000):
            results = [Result(row, None, [{"label": "a"}]) for row in range(claim.start_row, claim.stop_row)]
            part = sink.stage(job_id, lease_id, claim.start_row, results)
            chunk = ChunkResults(claim.start_row, claim.stop_row, results, part)
            chunks.commit(
                self.db, lease_id, [chunk], lambda session, results=results: sink.record(session, job_id, results)
            )
        leases.release(self.db, lease_id, "drained")
        finalize_job(self.db, self.store, self.settings, job_id)
        assert job_state(self.db, job_id) == JobState.COMPLETED
