"""The room in a project's queue and uploads, on both databases: counted whole, and never given to two at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from jobs.data.drafts import StoredObject
from jobs.data.sources import ChunkRange
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.states import JobState
from jobs.db.tables import Batch, Job, StoredFile
from jobs.errors import QueueFull, StokerError, StorageFull, TooManyRows
from jobs.ledger import jobs as job_ledger
from jobs.ledger import planning
from jobs.ledger.accounts import usage
from jobs.ledger.accounts.usage import RowsWanted
from jobs.ledger.groups import batches
from jobs.ledger.groups.batches import BatchPart, BatchPlan, NewBatch
from jobs.specs.inference import parse_spec
from tests.support.ledger import set_job

SPEC = parse_spec({"task": "embeddings", "model": "org/model", "input": {"path": "x.jsonl"}})
LIMIT = 100


def submit(db: Database, num_rows: int | None, *, project: str = "p") -> Job:
    """Submit a job of `num_rows` rows in a project that may have a hundred."""
    return job_ledger.submit(db, SPEC, project=project, wanted=RowsWanted(LIMIT, num_rows))


def create(db: Database, num_rows: int | None, **fields: Any) -> Batch:
    """Create a batch of `num_lines` lines in a project that may have a hundred."""
    known = {"endpoint": "/v1/embeddings", "input_file_id": "file_1", "completion_window": "24h"}
    new = NewBatch(**{**known, "window_seconds": 86400, "digest": new_id("d")})
    return batches.create(db, new, project="p", wanted=RowsWanted(LIMIT, num_rows), **fields)


def accept(db: Database, batch_id: str, num_rows: int) -> list[Job]:
    """Its only job, with this number of rows."""
    rows = StoredObject(f"batches/{batch_id}/rows.jsonl", 10, "00")
    batches.accept(db, batch_id, BatchPlan(num_rows, "m", [BatchPart(SPEC, new_id("file"), rows, num_rows)]))
    with db.read() as session:
        return batches.jobs_of(session, batch_id)


def queued(db: Database, project: str = "p") -> int:
    """Rows in a project's queue."""
    with db.read() as session:
        return usage.queue_of(session, project).num_rows


def at_once(number: int, act: Callable[[], object]) -> tuple[int, int]:
    """How many of the threads succeeded, and how many were asked to retry later."""
    outcomes: list[bool] = []
    start = threading.Barrier(number)

    def run() -> None:
        start.wait()
        try:
            act()
        except (QueueFull, StorageFull):
            outcomes.append(False)
        else:
            outcomes.append(True)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes.count(True), outcomes.count(False)


def test_rows_count_from_the_submission_until_they_are_done(database: Database) -> None:
    job = submit(database, 60)
    assert queued(database) == 60, "before it is planned"
    planning.plan(database, job.id, [ChunkRange(0, 60, {})])
    assert queued(database) == 60
    with pytest.raises(QueueFull, match="60 rows in the queue, and this submission has 41 more; its limit is 100"):
        submit(database, 41)
    set_job(database, job.id, state=JobState.RUNNING, own_done=20)
    assert queued(database) == 40
    submit(database, 60)
    job_ledger.fail(database, job.id, StokerError("it broke"))
    assert queued(database) == 60, "what has ended is out of the queue"
    submit(database, 40)


def test_a_batch_counts_once_before_and_after_it_is_split(database: Database) -> None:
    batch = create(database, 70)
    assert queued(database) == 70
    (job,) = accept(database, batch.id, 70)
    assert (queued(database), job.num_rows) == (70, 70)
    set_job(database, job.id, own_done=30)
    assert queued(database) == 40
    with pytest.raises(QueueFull):
        create(database, 61)
    job_ledger.cancel(database, job.id)
    assert queued(database) == 0
    refused = create(database, 100)
    batches.reject(database, refused.id, [])
    cancelled = create(database, 100)
    batches.cancel(database, cancelled.id)
    assert queued(database) == 0


def test_a_submission_that_could_never_fit_has_no_retry_after(database: Database) -> None:
    submit(database, 10)
    for act in (lambda: submit(database, 101), lambda: create(database, 101)):
        with pytest.raises(TooManyRows, match="more than 100 rows") as refused:
            act()
        assert not refused.value.retryable
    assert queued(database) == 10


def test_what_is_not_counted_yet_is_alone(database: Database) -> None:
    """Its number of rows is not known yet, so at most one such input exceeds the limit."""
    assert at_once(8, lambda: submit(database, None)) == (1, 7)
    with pytest.raises(QueueFull, match="still being counted"):
        submit(database, 1)
    with pytest.raises(QueueFull, match="still being counted"):
        create(database, None)
    submit(database, 1, project="other")
    with database.read() as session:
        (job,) = job_ledger.list_jobs(session, project="p")[0]
    planning.plan(database, job.id, [ChunkRange(0, 95, {})])
    assert queued(database) == 95
    with pytest.raises(QueueFull, match="95 rows in the queue"):
        submit(database, 6)
    submit(database, 5)
    with pytest.raises(QueueFull):
        submit(database, None)


def test_an_unread_batch_is_alone_until_it_is_read(database: Database) -> None:
    batch = create(database, None)
    with pytest.raises(QueueFull, match="still being counted"):
        submit(database, 1)
    accept(database, batch.id, 30)
    submit(database, 70)
    assert queued(database) == 100


def test_many_at_once_do_not_pass_the_limit(database: Database) -> None:
    assert at_once(12, lambda: submit(database, 30)) == (3, 9)
    assert queued(database) == 90
    assert at_once(6, lambda: create(database, 5)) == (2, 4)
    assert queued(database) == 100


def test_a_repeated_create_needs_no_second_room(database: Database) -> None:
    first = create(database, 100, idempotency_key="once")
    known = NewBatch("/v1/embeddings", "file_1", "24h", 86400, first.digest)
    wanted = RowsWanted(LIMIT, 100)
    for repeat in ({"idempotency_key": "once"}, {"is_retry": True}):
        assert batches.create(database, known, project="p", wanted=wanted, **repeat).id == first.id  # type: ignore[arg-type]


def test_a_retry_after_a_refusal_does_not_find_a_cancelled_batch(database: Database) -> None:
    """The SDK marks its try after a 429 as a retry, too."""
    first = create(database, 100)
    batches.cancel(database, first.id)
    again = NewBatch("/v1/embeddings", "file_1", "24h", 86400, first.digest)
    made = batches.create(database, again, project="p", is_retry=True, wanted=RowsWanted(LIMIT, 100))
    assert made.id != first.id


def test_the_wait_is_estimated_from_the_running_jobs(database: Database) -> None:
    job = submit(database, 100)
    planning.plan(database, job.id, [ChunkRange(0, 100, {})])
    with database.read() as session:
        now = session.time()
    set_job(database, job.id, state=JobState.RUNNING, own_done=10, started_at=now - 5)
    with pytest.raises(QueueFull) as refused:
        submit(database, 30)
    assert 5 <= refused.value.retry_after_seconds <= 30


# -- uploads -------------------------------------------------------------------------------------------------------


def keep(db: Database, num_bytes: int, *, project: str = "p", purpose: str = "input", expires_in: float = 60) -> None:
    """Create an upload of `num_bytes` bytes in a project that may have a hundred."""
    with db.write() as session:
        usage.reserve_bytes(session, project, limit=LIMIT, num_bytes=num_bytes)
        now = session.time()
        file_id = new_id("file")
        session.add(
            StoredFile(
                id=file_id, filename="f", purpose=purpose, key=file_id, num_bytes=num_bytes, sha256="", project=project,
                created_at=now, expires_at=now + expires_in,
            )
        )  # fmt: skip


def test_uploads_count_until_they_expire_and_batch_outputs_do_not(database: Database) -> None:
    keep(database, 60)
    keep(database, 40, purpose="batch_output")
    keep(database, 40, project="other")
    with pytest.raises(StorageFull, match="would exceed 100 bytes") as refused:
        keep(database, 41)
    assert 1 <= refused.value.retry_after_seconds <= 30
    keep(database, 40, purpose="batch", expires_in=-1)
    keep(database, 40)
    with pytest.raises(StorageFull):
        keep(database, 1)


def test_uploads_at_once_do_not_pass_the_limit(database: Database) -> None:
    assert at_once(9, lambda: keep(database, 30)) == (3, 6)
