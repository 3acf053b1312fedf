"""Jobs, slots, leases and batches made with the ledger's own functions, for the tests of these functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, update
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.drafts import StoredObject
from jobs.data.rows import Result
from jobs.data.sources import ChunkRange
from jobs.data.store_keys import batch_prefix
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.states import DeliveryState
from jobs.db.tables import Batch, Job, LeaderLock, Lease, ResultRecord, WebhookDelivery
from jobs.ledger import chunks, planning, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.chunks import ChunkResults, Claim
from jobs.ledger.groups import batches
from jobs.ledger.groups.batches import BatchPart, BatchPlan, NewBatch
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.specs.inference import parse_spec

SPEC = parse_spec({"task": "embeddings", "model": "m", "input": {"path": "rows.jsonl"}})


LEASE_SECONDS = 30.0
COUNTERS = {f"num_{name}": f"own_{name}" for name in ("done", "failed", "tokens")}
"""The column of a job that holds the part of each counter that no lease recorded."""


def make_job(db: Database, num_chunks: int = 4, chunk_rows: int = 10) -> str:
    """A queued job with equal chunks."""
    job = job_ledger.submit(db, SPEC)
    planning.plan(db, job.id, [ChunkRange(i * chunk_rows, (i + 1) * chunk_rows, {}) for i in range(num_chunks)])
    return job.id


def make_slots(db: Database, settings: Settings, *slot_ids: str) -> None:
    """Online slots, each owned by the incarnation `<slot>-1`."""
    slots.register(db, [slots.SlotInfo(slot_id, "host", "cpu", None, "CPU", 0, 1) for slot_id in slot_ids])
    for slot_id in slot_ids:
        slots.enter(db, slot_id, f"{slot_id}-1", settings)


def hold(db: Database, job_id: str, slot_id: str) -> str:
    """An active lease of the job on the slot."""
    (lease_id,) = grants.grant(db, Grant(job_id, (slot_id,)), lease_seconds=LEASE_SECONDS)
    assert leases.activate(db, lease_id, f"{slot_id}-1", lease_seconds=LEASE_SECONDS) is not None
    return lease_id


def results_of(start: int, stop: int) -> list[Result]:
    """An output for each row."""
    return [Result(row, f"k{row}", {"value": row}, num_tokens=2) for row in range(start, stop)]


def commit(db: Database, lease_id: str, job_id: str, claims: Sequence[Claim]) -> None:
    """Record an output for each row of the claims."""
    computed = [ChunkResults(c.start_row, c.stop_row, results_of(c.start_row, c.stop_row)) for c in claims]
    rows = [{"job_id": job_id, "row_index": r.row_index, "output": "1"} for c in computed for r in c.results]
    chunks.commit(db, lease_id, computed, lambda session: session.execute(insert(ResultRecord), rows))


def new_batch(**fields: Any) -> NewBatch:
    """A batch request with a file that is never read."""
    known = {"endpoint": "/v1/embeddings", "input_file_id": "file_1", "completion_window": "24h"}
    return NewBatch(**{**known, "window_seconds": 86400, "digest": "d", **fields})


def plan_of(batch_id: str, *num_lines: int) -> BatchPlan:
    """A plan with one job for each given number of lines."""
    parts = []
    for number, num_rows in enumerate(num_lines):
        file_id = new_id("file")
        document = {"task": "embeddings", "model": "org/model", "input": {"path": f"file:{file_id}"}}
        rows = StoredObject(f"{batch_prefix(batch_id)}x/rows-{number}.jsonl", 10, "00")
        parts.append(BatchPart(parse_spec(document), file_id, rows, num_rows))
    return BatchPlan(sum(num_lines), "org/model", parts)


def accepted(db: Database, *num_lines: int) -> Batch:
    """A batch in progress."""
    batch = batches.create(db, new_batch(), project="p")
    batches.accept(db, batch.id, plan_of(batch.id, *num_lines))
    return look(db, batch.id)


def look(db: Database, batch_id: str) -> Batch:
    """The current state of the batch."""
    with db.read() as session:
        return batches.get(session, batch_id)


def look_at_lease(db: Database, lease_id: str) -> Lease:
    """The current state of a lease."""
    with db.read() as session:
        return session.get_one(Lease, lease_id)


def set_job(db: Database, job_id: str, **fields: Any) -> None:
    """Set columns of a job. Its counters are set as those of a job whose leases an older release held."""
    with db.write() as session:
        for name, value in fields.items():
            setattr(session.get(Job, job_id), COUNTERS.get(name, name), value)


def expire_delivery_claims(db: Database) -> None:
    """Make all webhook deliveries that have not ended due now, as if the claims of their senders had expired."""
    with db.write() as session:
        pending = col(WebhookDelivery.state) == DeliveryState.PENDING
        session.execute(update(WebhookDelivery).where(pending).values(not_before=0.0))


def expire_leader_lock(db: Database) -> None:
    """Make the leader lock expire now, as if its life had passed without a renewal."""
    with db.write() as session:
        session.execute(update(LeaderLock).values(expires_at=0.0))


def job_state(db: Database, job_id: str) -> str:
    """The state of a job."""
    with db.read() as session:
        return str(job_ledger.get(session, job_id).state)
