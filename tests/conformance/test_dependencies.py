"""Jobs that come after others or at a time, on both databases: each begins once, or says why it cannot."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import func, select

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Dependency, Job
from jobs.errors import Conflict, InvalidModel, InvalidSpec, StokerError
from jobs.ledger import jobs as job_ledger
from jobs.ledger import overdue, planning
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.records import history
from jobs.specs.inference import parse_spec
from tests.support.ledger import make_slots, set_job

DOCUMENT = {"task": "embeddings", "model": "org/model", "input": {"path": "x.jsonl"}}
TRAINING = {"kind": "training", "trainer": "torch", "module": "recipes.vae"}


def submit(db: Database, *after: Any, project: str = "p", **fields: Any) -> str:
    return job_ledger.submit(db, parse_spec({**DOCUMENT, "after": list(after), **fields}), project=project).id


def any_end(job_id: str) -> dict[str, str]:
    return {"job": f"job:{job_id}", "when": "any"}


def look(db: Database, job_id: str) -> Job:
    with db.read() as session:
        return job_ledger.get(session, job_id)


def count(db: Database, table: type[Job] | type[Dependency]) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def complete(db: Database, job_id: str) -> None:
    set_job(db, job_id, state=JobState.FINALIZING)
    job_ledger.complete(db, job_id, [])


def fail(db: Database, job_id: str) -> None:
    job_ledger.fail(db, job_id, StokerError("it broke"))


def test_a_job_is_ready_in_the_transaction_that_completes_its_parent(database: Database) -> None:
    parent = submit(database)
    child = submit(database, f"job:{parent}")
    assert look(database, parent).ready_at == look(database, parent).created_at
    assert look(database, child).ready_at is None
    complete(database, parent)
    ended, ready = look(database, parent), look(database, child)
    assert ready.state == JobState.VALIDATING
    assert ready.ready_at is not None
    assert ready.ready_at >= (ended.ended_at or 0.0) > ready.created_at
    assert count(database, Dependency) == 0


def test_a_failed_parent_cancels_all_that_need_it_and_says_why(database: Database) -> None:
    parent = submit(database)
    child = submit(database, f"job:{parent}")
    grandchild = submit(database, f"job:{child}")
    other = submit(database, any_end(child))
    fail(database, parent)
    for job_id, cause in ((child, f"{parent}, which this job comes after, is failed"), (grandchild, f"{child}, which")):
        job = look(database, job_id)
        assert (job.state, job.error_code) == (JobState.CANCELLED, "dependency_failed")
        assert cause in (job.error_message or "")
        with database.read() as session:
            last = list(history.events(session, job_id))[-1]
            assert (last.name, last.data["reason"]) == ("job.cancelled", job.error_message)
    assert look(database, other).state == JobState.VALIDATING
    assert look(database, other).ready_at is not None


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "expired"])
def test_a_parent_that_only_has_to_end_may_end_in_any_way(database: Database, end: str) -> None:
    parent = submit(database)
    child = submit(database, any_end(parent))
    if end == "completed":
        complete(database, parent)
    elif end == "failed":
        fail(database, parent)
    elif end == "cancelled":
        job_ledger.cancel(database, parent)
    else:
        set_job(database, parent, deadline_at=1.0)
        assert overdue.expire_overdue(database) == [parent]
    assert look(database, parent).state == end
    assert look(database, child).ready_at is not None


def test_a_job_is_ready_when_the_last_of_its_parents_has_ended(database: Database) -> None:
    parents = [submit(database) for _ in range(8)]
    child = submit(database, *(f"job:{one}" for one in parents[:4]), *map(any_end, parents[4:]))
    start = threading.Barrier(len(parents))
    before: list[bool] = []

    def end(job_id: str) -> None:
        start.wait()
        before.append(look(database, child).ready_at is None)
        complete(database, job_id)

    threads = [threading.Thread(target=end, args=[one]) for one in parents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == [True] * 8
    assert look(database, child).ready_at is not None


def test_a_job_submitted_while_its_parent_ends_never_waits_for_ever(database: Database) -> None:
    parents = [submit(database) for _ in range(10)]
    start = threading.Barrier(2)
    children: list[str] = []

    def end() -> None:
        for parent in parents:
            start.wait()
            job_ledger.cancel(database, parent)

    ending = threading.Thread(target=end)
    ending.start()
    for parent in parents:
        start.wait()
        children.append(submit(database, any_end(parent)))
    ending.join()
    assert all(look(database, child).ready_at is not None for child in children)


def test_parents_that_cannot_help_are_refused_and_nothing_is_made(database: Database) -> None:
    ended, foreign = submit(database), submit(database, project="other")
    fail(database, ended)
    for named, message in ((ended, "that job is failed"), (foreign, "no such job"), ("job_none", "no such job")):
        with pytest.raises(InvalidSpec, match=f"after 'job:{named}': .*{message}") as caught:
            submit(database, f"job:{named}")
        assert caught.value.param == "after"
    assert count(database, Job) == 2
    assert look(database, submit(database, any_end(ended))).ready_at is not None
    assert look(database, submit(database, f"job:{foreign}", project="default")).ready_at is None


def test_the_model_of_a_training_is_waited_for_in_the_same_way(database: Database) -> None:
    trainings = [job_ledger.submit(database, parse_spec(TRAINING), project="p").id for _ in range(3)]
    children = [submit(database, any_end(one), model=f"job:{one}") for one in trainings]
    assert [look(database, child).ready_at for child in children] == [None] * 3
    complete(database, trainings[0])
    fail(database, trainings[1])
    assert look(database, children[0]).ready_at is not None
    assert look(database, children[1]).state == JobState.CANCELLED, "it needs the model, however it comes after the job"
    with pytest.raises(InvalidModel, match=f"model 'job:{trainings[1]}': that job is failed"):
        submit(database, model=f"job:{trainings[1]}")


def test_a_waiting_job_that_was_cancelled_stays_cancelled(database: Database) -> None:
    parent = submit(database)
    child = submit(database, f"job:{parent}")
    grandchild = submit(database, f"job:{child}")
    job_ledger.cancel(database, child)
    assert look(database, grandchild).state == JobState.CANCELLED
    complete(database, parent)
    assert look(database, child).ready_at is None
    with pytest.raises(Conflict):
        job_ledger.cancel(database, child)


def test_times_count_from_when_the_job_is_ready(database: Database) -> None:
    at = "2090-01-31T07:00:00+01:00"
    later = look(database, submit(database, start_at=at, time_limit="1h"))
    assert later.spec["start_at"] == "2090-01-31T06:00:00Z"
    assert later.ready_at == 3789525600.0
    assert later.deadline_at == later.ready_at + 3600
    parent = submit(database)
    waiting, both = submit(database, f"job:{parent}", time_limit=60), submit(database, f"job:{parent}", start_at=at)
    assert look(database, waiting).deadline_at is None
    complete(database, parent)
    found = look(database, waiting)
    assert found.ready_at is not None
    assert found.deadline_at == found.ready_at + 60
    assert look(database, both).ready_at == later.ready_at
    past = look(database, submit(database, start_at="2020-01-31T07:00:00Z"))
    assert past.ready_at == past.created_at


def test_the_end_of_a_parent_under_a_lease_frees_its_children(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    parent = submit(database)
    child = submit(database, f"job:{parent}")
    planning.enqueue(database, parent)
    (lease_id,) = grants.grant(database, Grant(parent, ("s0",)), lease_seconds=30.0)
    leases.activate(database, lease_id, "s0-1", lease_seconds=30.0)
    leases.fail_job(database, lease_id, InvalidModel("no such model"))
    assert look(database, child).state == JobState.CANCELLED
