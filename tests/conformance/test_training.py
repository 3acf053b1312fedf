"""A training's record on SQLite and PostgreSQL: fenced by its lease, steps replaced, checkpoints kept and dropped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.data.drafts import StoredObject
from jobs.data.store_keys import checkpoint_prefix
from jobs.db.database import Database
from jobs.db.states import AttemptEnd, JobState
from jobs.db.tables import Artifact, Attempt, Job
from jobs.errors import DeviceOutOfMemory, LostLease, ModelTooLarge, NotKept, RunnerDied, StoreUnwritable
from jobs.ledger import attempts, overdue, planning, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.attempts import KeepRule, NewCheckpoint
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.records import history
from jobs.specs.inference import parse_spec

LEASE_SECONDS = 30.0
SPEC = parse_spec({"kind": "training", "task": "text-classification", "model": "m", "data": {"train": "rows.jsonl"}})


@pytest.fixture
def job_id(database: Database, settings: Settings) -> Iterator[str]:
    """A queued training."""
    slots.register(database, [slots.SlotInfo("s0", "host", "cpu", None, "CPU", 0, 1)])
    slots.enter(database, "s0", "s0-1", settings)
    job = job_ledger.submit(database, SPEC)
    planning.enqueue(database, job.id)
    return job.id


def hold(db: Database, job_id: str) -> str:
    """An active lease of the job on the slot."""
    (lease_id,) = grants.grant(db, Grant(job_id, ("s0",)), lease_seconds=LEASE_SECONDS)
    assert leases.activate(db, lease_id, "s0-1", lease_seconds=LEASE_SECONDS) is not None
    return lease_id


def job_of(db: Database, job_id: str) -> Job:
    with db.read() as session:
        return job_ledger.get(session, job_id)


def attempts_of(db: Database, job_id: str) -> list[Attempt]:
    with db.read() as session:
        return attempts.attempts(session, job_id)


def metrics_of(db: Database, job_id: str) -> dict[tuple[int, str], tuple[float | None, int]]:
    with db.read() as session:
        return {(one.step, one.name): (one.value, one.attempt) for one in attempts.metrics(session, job_id)}


def steps_kept(db: Database, job_id: str) -> list[int]:
    with db.read() as session:
        return [one.step for one in attempts.checkpoints(session, job_id)]


def checkpoint(job_id: str, lease_id: str, step: int, metric: float | None = None) -> NewCheckpoint:
    prefix = checkpoint_prefix(job_id, step, lease_id)
    return NewCheckpoint(step, prefix, [StoredObject(f"{prefix}weights", 10, "ab")], metric)


def test_steps_that_are_computed_again_replace_the_earlier_ones(database: Database, job_id: str) -> None:
    first = hold(database, job_id)
    attempts.begin(database, first, resumed_step=0)
    attempts.advance(database, first, step=2, total_steps=9, points=[(1, "loss", 3.0), (2, "loss", 2.0)])
    leases.crash(database, first, RunnerDied("gone"), computing=None, retries=Settings(retry_seconds=0.001))
    overdue.requeue_idle(database)
    second = hold(database, job_id)
    attempts.begin(database, second, resumed_step=1)
    attempts.advance(database, second, step=3, total_steps=9, points=[(2, "loss", 2.0), (3, "loss", math.nan)])
    assert metrics_of(database, job_id) == {(1, "loss"): (3.0, 1), (2, "loss"): (2.0, 2), (3, "loss"): (None, 2)}
    assert (job_of(database, job_id).num_done, job_of(database, job_id).num_rows) == (3, 9)
    before, now = attempts_of(database, job_id)
    assert (before.end, before.reason, before.last_step) == (AttemptEnd.MACHINE, "gone", 2)
    assert (now.end, now.resumed_step, now.last_step) == (None, 1, 3)


def test_nobody_records_under_a_lease_that_is_over(database: Database, job_id: str) -> None:
    lease_id = hold(database, job_id)
    attempts.begin(database, lease_id, resumed_step=0)
    leases.release(database, lease_id, "stopped")
    verbs: list[Any] = [
        lambda: attempts.begin(database, lease_id, resumed_step=0),
        lambda: attempts.advance(database, lease_id, step=1, total_steps=2, points=[(1, "loss", 1.0)]),
        lambda: attempts.keep_checkpoint(database, lease_id, checkpoint(job_id, lease_id, 1), KeepRule(1)),
        lambda: attempts.forget_checkpoint(database, lease_id, 1, "damaged"),
        lambda: attempts.finish(database, lease_id, [], step=2),
    ]
    for verb in verbs:
        with pytest.raises(LostLease):
            verb()
    assert metrics_of(database, job_id) == {}
    assert steps_kept(database, job_id) == []
    assert job_of(database, job_id).state == JobState.RUNNING


def test_the_newest_checkpoints_and_the_best_one_are_kept(database: Database, job_id: str) -> None:
    lease_id = hold(database, job_id)
    rule = KeepRule(newest=2, best="eval_loss")
    dropped = []
    for step, metric in ((1, 0.9), (2, 0.1), (3, 0.5), (4, None), (5, 0.3)):
        dropped += attempts.keep_checkpoint(database, lease_id, checkpoint(job_id, lease_id, step, metric), rule)
    assert steps_kept(database, job_id) == [5, 4, 2]
    assert dropped == [checkpoint_prefix(job_id, step, lease_id) for step in (1, 3)]
    higher = KeepRule(newest=1, best="eval_accuracy", mode="max")
    attempts.keep_checkpoint(database, lease_id, checkpoint(job_id, lease_id, 6, 0.2), higher)
    assert steps_kept(database, job_id) == [6, 5]


def test_a_checkpoint_resets_the_count_of_deaths(database: Database, job_id: str) -> None:
    settings = Settings(job_crashes=2, retry_seconds=0.001)
    for step in range(1, 5):
        lease_id = hold(database, job_id)
        attempts.begin(database, lease_id, resumed_step=step - 1)
        attempts.keep_checkpoint(database, lease_id, checkpoint(job_id, lease_id, step), KeepRule(1))
        leases.crash(database, lease_id, RunnerDied("gone"), computing=None, retries=settings)
        overdue.requeue_idle(database)
        assert job_of(database, job_id).state == JobState.QUEUED
    lease_id = hold(database, job_id)
    attempts.keep_checkpoint(database, lease_id, checkpoint(job_id, lease_id, 4), KeepRule(1))  # no further than before
    leases.crash(database, lease_id, RunnerDied("gone"), computing=None, retries=settings)
    job = job_of(database, job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "runner_died")
    assert "could not continue" in (job.error_message or "")


def test_checkpoints_that_cannot_be_kept_end_a_training(database: Database, job_id: str) -> None:
    settings = Settings(job_crashes=2, retry_seconds=0.001)
    full = NotKept("the checkpoint of step 5 could not be stored: No space left on device")
    for _ in range(2):
        lease_id = hold(database, job_id)
        attempts.begin(database, lease_id, resumed_step=0)
        attempts.advance(database, lease_id, step=9, total_steps=40, points=[])
        leases.crash(database, lease_id, full, computing=None, retries=settings)
        overdue.requeue_idle(database)
    job = job_of(database, job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "not_kept")
    assert "No space left on device (tried 2 times)" in (job.error_message or "")


def test_a_training_waits_for_a_store_that_takes_nothing(database: Database, job_id: str) -> None:
    settings = Settings(job_crashes=2, retry_max_seconds=1000.0)
    for _ in range(3):
        error = StoreUnwritable("checkpoints cannot be stored")
        leases.crash(database, hold(database, job_id), error, computing=None, retries=settings)
        job = job_of(database, job_id)
        assert (job.state, job.crashes) == (JobState.RUNNING, 0)
        with database.write() as session:
            waiting = session.get_one(Job, job_id)
            assert waiting.not_before > session.time() + 500.0
            waiting.not_before = 0.0
    assert attempts_of(database, job_id) == []


def test_each_end_of_an_attempt_has_its_word(database: Database, job_id: str) -> None:

    def attempt() -> str:
        lease_id = hold(database, job_id)
        attempts.begin(database, lease_id, resumed_step=0)
        return lease_id

    def end() -> tuple[AttemptEnd | None, str | None]:
        last = attempts_of(database, job_id)[-1]
        overdue.requeue_idle(database)
        return last.end, last.reason

    settings = Settings(retry_seconds=0.001)
    lease_id = attempt()
    leases.ask_yield(database, {lease_id: "job"})
    leases.release(database, lease_id, "stopped")
    assert end() == (AttemptEnd.PREEMPTED, "stopped")
    leases.release(database, attempt(), "stopped")
    assert end() == (AttemptEnd.SHUTDOWN, "stopped")
    leases.crash(database, attempt(), DeviceOutOfMemory("too large"), computing=None, retries=settings)
    assert end() == (AttemptEnd.OUT_OF_MEMORY, "too large")
    with database.read() as session:
        assert attempts.num_memory_failures(session, job_id) == 1
    lease_id = attempt()
    job_ledger.cancel(database, job_id)
    leases.release(database, lease_id, "stopped")
    assert end() == (AttemptEnd.CANCELLED, "stopped")
    assert job_of(database, job_id).state == JobState.CANCELLED


def test_a_users_fault_ends_the_job_and_its_attempt(database: Database, job_id: str) -> None:
    lease_id = hold(database, job_id)
    attempts.begin(database, lease_id, resumed_step=0)
    leases.fail_job(database, lease_id, ModelTooLarge("too large"))
    (only,) = attempts_of(database, job_id)
    assert (only.end, only.reason) == (AttemptEnd.OUT_OF_MEMORY, "too large")
    job = job_of(database, job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "training_too_large")
    with pytest.raises(LostLease):
        leases.release(database, lease_id, "stopped")


def test_a_holder_whose_lease_was_lost_cannot_fail_the_job(database: Database, job_id: str) -> None:
    lease_id = hold(database, job_id)
    leases.crash(database, lease_id, DeviceOutOfMemory("too large"), computing=None, retries=Settings())
    with pytest.raises(LostLease):
        leases.fail_job(database, lease_id, ModelTooLarge("too large"))
    assert job_of(database, job_id).error_code is None


def test_what_a_training_made_is_recorded_with_its_end(database: Database, job_id: str) -> None:
    lease_id = hold(database, job_id)
    attempts.begin(database, lease_id, resumed_step=0)
    made = Artifact(job_id=job_id, name="model/config.json", key="k", num_bytes=2, sha256="ab", created_at=1.0)
    attempts.finish(database, lease_id, [made], step=7)
    assert job_of(database, job_id).state == JobState.FINALIZING
    assert [attempt.end for attempt in attempts_of(database, job_id)] == [AttemptEnd.COMPLETED]
    with pytest.raises(LostLease):
        attempts.finish(database, lease_id, [made], step=7)
    leases.release(database, lease_id, "drained")
    job_ledger.complete(database, job_id, [])
    job = job_of(database, job_id)
    assert (job.state, job.num_done, job.num_rows) == (JobState.COMPLETED, 7, 7)
    with database.read() as session:
        assert [artifact.name for artifact in job_ledger.artifacts(session, job_id)] == ["model/config.json"]
        names = [event.name for event in history.events(session, job_id)]
    assert attempts_of(database, job_id)[0].end == AttemptEnd.COMPLETED
    assert names == [
        "job.submitted", "job.queued", "lease.granted", "lease.active", "attempt.began", "attempt.ended",
        "job.finalizing", "lease.released", "job.completed",
    ]  # fmt: skip
