"""Batch verbs on both databases: made once, ended once, and nothing in between that a kill could leave half done."""

from __future__ import annotations

import itertools

import pytest

from jobs.data.drafts import StoredObject
from jobs.db.database import Database
from jobs.db.states import BATCH_TRANSITIONS, BatchState, JobState
from jobs.db.tables import Job, StoredFile
from jobs.errors import Conflict, NotFound
from jobs.ledger import jobs as job_ledger
from jobs.ledger.accounts.uploads import uploads_in_use
from jobs.ledger.groups import batch_ends, batches
from jobs.ledger.groups.batch_ends import BatchOutcome
from jobs.ledger.groups.batches import BatchCounts
from tests.support.ledger import accepted, look, new_batch, plan_of, set_job


def jobs_of(db: Database, batch_id: str) -> list[Job]:
    """Its jobs as they are now."""
    with db.read() as session:
        return batches.jobs_of(session, batch_id)


def outcome(state: BatchState, completed: int = 3, failed: int = 0) -> BatchOutcome:
    """An end with an output file and none of errors."""
    counts = BatchCounts(completed + failed, completed, failed)
    return BatchOutcome(state, counts, StoredObject("uploads/out", 5, "00"), None, 7, 2)


def test_a_request_with_a_key_is_one_batch(database: Database) -> None:
    """A client that repeats itself would pay twice."""
    first = batches.create(database, new_batch(), project="p", idempotency_key="k")
    assert batches.create(database, new_batch(), project="p", idempotency_key="k").id == first.id
    assert batches.create(database, new_batch(), project="other", idempotency_key="k").id != first.id
    with pytest.raises(Conflict):
        batches.create(database, new_batch(digest="e"), project="p", idempotency_key="k")


def test_a_marked_retry_finds_the_first_try(database: Database) -> None:
    """The SDK sends no key, only the number of its try."""
    first = batches.create(database, new_batch(), project="p")
    assert batches.create(database, new_batch(), project="p", is_retry=True).id == first.id
    assert batches.create(database, new_batch(digest="e"), project="p", is_retry=True).id != first.id
    assert batches.create(database, new_batch(), project="q", is_retry=True).id != first.id
    assert batches.create(database, new_batch(), project="p").id != first.id


def test_accepting_makes_the_jobs_and_their_files_at_once(database: Database) -> None:
    """A job without its batch or its input would compute for nothing."""
    batch = accepted(database, 3, 2)
    assert (batch.state, batch.num_lines) == (BatchState.IN_PROGRESS, 5)
    jobs = jobs_of(database, batch.id)
    assert [job.deadline_at for job in jobs] == [batch.expires_at] * 2
    with database.read() as session:
        in_use = uploads_in_use(session)
    assert set(in_use) == {"file_1", *(job.spec["input"]["path"].removeprefix("file:") for job in jobs)}
    with pytest.raises(Conflict):
        batches.accept(database, batch.id, plan_of(batch.id, 1))
    assert len(jobs_of(database, batch.id)) == 2


def test_counts_are_the_jobs_counts_until_the_end(database: Database) -> None:
    """Progress must be current."""
    batch = accepted(database, 3, 2)
    first, second = jobs_of(database, batch.id)
    set_job(database, first.id, own_done=3, own_failed=1)
    set_job(database, second.id, own_done=1)
    with database.read() as session:
        assert batches.counts(session, batch) == BatchCounts(5, 3, 1)


def test_a_batch_is_finished_once_its_jobs_have_ended(database: Database) -> None:
    """Too early would lose lines, twice would write them twice."""
    batch = accepted(database, 3, 2)
    first, second = jobs_of(database, batch.id)
    for job in (first, second):
        with database.read() as session:
            assert batch_ends.to_finish(session) == []
        set_job(database, job.id, state=JobState.COMPLETED)
    with database.read() as session:
        assert batch_ends.to_finish(session) == [batch.id]
    assert batch_ends.begin_finalizing(database, batch.id).state == BatchState.FINALIZING
    assert batch_ends.begin_finalizing(database, batch.id).state == BatchState.FINALIZING
    batch_ends.end(database, batch.id, outcome(BatchState.COMPLETED, 4, 1), default_seconds=60)
    with pytest.raises(Conflict):
        batch_ends.end(database, batch.id, outcome(BatchState.COMPLETED), default_seconds=60)
    ended = look(database, batch.id)
    assert (ended.state, ended.num_completed, ended.num_failed, ended.error_file_id) == ("completed", 4, 1, None)
    assert ended.completed_at is not None
    with database.read() as session:
        output = session.get(StoredFile, ended.output_file_id)
        assert output is not None
        assert (output.purpose, output.project) == (batches.OUTPUT_PURPOSE, "p")
        assert batch_ends.to_finish(session) == []
    batch_ends.forget_rows(database, batch.id)
    with database.read() as session:
        assert uploads_in_use(session).keys() <= {job.spec["input"]["path"][5:] for job in (first, second)}
        assert session.get(StoredFile, first.spec["input"]["path"].removeprefix("file:")) is None


def test_a_cancelled_batch_is_worked_on_until_its_jobs_know(database: Database) -> None:
    """The API may die between the batch's cancel and those of its jobs."""
    batch = accepted(database, 3)
    (job,) = jobs_of(database, batch.id)
    set_job(database, job.id, state=JobState.RUNNING)
    assert batches.cancel(database, batch.id).state == BatchState.CANCELLING
    assert batches.cancel(database, batch.id).state == BatchState.CANCELLING
    with database.read() as session:
        assert batch_ends.to_finish(session) == [batch.id]
    set_job(database, job.id, state=JobState.CANCELLING)
    with database.read() as session:
        assert batch_ends.to_finish(session) == []
    set_job(database, job.id, state=JobState.CANCELLED)
    with database.read() as session:
        assert batch_ends.to_finish(session) == [batch.id]
    assert batch_ends.begin_finalizing(database, batch.id).state == BatchState.CANCELLING
    batch_ends.end(database, batch.id, outcome(BatchState.CANCELLED), default_seconds=60)
    with pytest.raises(Conflict):
        batches.cancel(database, batch.id)


def test_a_batch_that_is_not_read_yet_is_cancelled_at_once(database: Database) -> None:
    """Its reader must not bring it back to life."""
    batch = batches.create(database, new_batch(), project="p")
    assert batches.cancel(database, batch.id).state == BatchState.CANCELLED
    with pytest.raises(Conflict):
        batches.accept(database, batch.id, plan_of(batch.id, 1))
    with pytest.raises(Conflict):
        batches.reject(database, batch.id, [])
    assert jobs_of(database, batch.id) == []


def test_a_refused_batch_has_its_errors(database: Database) -> None:
    """Errors are data that the client reads."""
    batch = batches.create(database, new_batch(), project="p")
    errors = [{"code": "empty_file", "message": "the file has no requests", "line": None, "param": None}]
    batches.reject(database, batch.id, errors)
    failed = look(database, batch.id)
    assert (failed.state, failed.errors, failed.num_completed) == (BatchState.FAILED, errors, 0)
    with pytest.raises(NotFound):
        batches.cancel(database, "batch_nothing")


def test_lists_are_newest_first_and_by_project(database: Database) -> None:
    """A page must neither repeat nor skip a batch."""
    made = [batches.create(database, new_batch(), project="p").id for _ in range(5)]
    batches.create(database, new_batch(), project="q")
    seen: list[str] = []
    has_more, after = True, None
    while has_more:
        with database.read() as session:
            page, has_more = batches.list_batches(session, project="p", after=after, limit=2)
        seen += [batch.id for batch in page]
        after = seen[-1]
    assert seen == made[::-1]


def test_every_verb_keeps_to_the_transition_table(database: Database) -> None:
    """The documentation shows this table."""
    seen = {("", BatchState.VALIDATING)}
    for path in (
        (BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.COMPLETED),
        (BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.EXPIRED),
        (BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.FAILED),
        (BatchState.IN_PROGRESS, BatchState.CANCELLING, BatchState.CANCELLED),
    ):
        batch = accepted(database, 1)
        (job,) = jobs_of(database, batch.id)
        if BatchState.CANCELLING in path:
            batches.cancel(database, batch.id)
        job_ledger.cancel(database, job.id)
        states = [BatchState.VALIDATING, batch.state, batch_ends.begin_finalizing(database, batch.id).state]
        batch_ends.end(database, batch.id, outcome(path[-1]), default_seconds=1)
        states.append(look(database, batch.id).state)
        assert tuple(states[1:]) == path
        seen.update(itertools.pairwise(states))
    assert all(after in BATCH_TRANSITIONS[BatchState(before)] for before, after in seen if before)
