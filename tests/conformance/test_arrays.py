"""Arrays on both databases: each child once, never too many at once, and one end for all, whoever dies meanwhile."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import LIVE_JOB_STATES, JobState
from jobs.db.tables import Job
from jobs.ledger import jobs as job_ledger
from jobs.ledger import planning
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.records import history
from jobs.specs.array_spec import AHEAD, parse_submission
from scheduler.control.finalizer import finalize_job
from scheduler.control.planning.arrays import plan_any
from scheduler.control.reaper import reap
from scheduler.control.retention import retain
from tests.support.arrays import TEMPLATE, Arrays
from tests.support.blocked_process import kill_inside
from tests.support.ledger import make_slots, set_job
from tests.support.rows import write_rows


@pytest.fixture
def system(database: Database, settings: Settings) -> Arrays:
    return Arrays(database, settings)


def test_children_are_made_a_few_ahead_and_ready_as_places_allow(system: Arrays) -> None:
    array_id = system.submit(100_000, max_parallel=3)
    array = system.look(array_id)
    assert (array.kind, array.state, array.num_rows) == ("array", JobState.RUNNING, 100_000)
    assert array.num_children == len(system.children(array_id)) == 3 + AHEAD
    assert [child.child_index for child in system.ready(array_id)] == [0, 1, 2]
    third = system.children(array_id)[2]
    assert (third.spec["model"], third.project, third.kind) == ("org/m2", "p", "inference")
    assert third.pins == {}
    assert system.to_fill() == []


def test_the_place_of_a_child_that_ends_is_given_to_the_next(system: Arrays) -> None:
    array_id = system.submit(50, max_parallel=3)
    first, second, _ = system.ready(array_id)
    system.end(second)
    assert [child.child_index for child in system.ready(array_id)] == [0, 2, 3]
    system.end(first, completes=False)
    assert [child.child_index for child in system.ready(array_id)] == [2, 3, 4]
    array = system.look(array_id)
    assert (array.num_done, array.num_failed) == (2, 1)
    assert system.to_fill() == [array_id]
    system.fill(array_id)
    assert len(system.children(array_id)) == 2 + 3 + AHEAD


def test_at_most_max_parallel_are_ready_and_each_child_is_made_once(system: Arrays) -> None:
    array_id = system.submit(60, max_parallel=4)
    failures: list[str] = []
    chosen = random.Random(7)
    ended = threading.Event()
    locks: dict[str, threading.Lock] = {}

    def work() -> None:
        while not ended.is_set():
            ready = system.ready(array_id)
            if len(ready) > 4:
                failures.append(f"{len(ready)} children are ready")
            if not ready:
                continue
            child = chosen.choice(ready)
            lock = locks.setdefault(child.id, threading.Lock())
            if lock.acquire(blocking=False):
                system.end(child)

    def schedule() -> None:
        while not ended.is_set():
            for one in system.to_fill():
                system.fill(one)
            if system.look(array_id).state == JobState.FINALIZING:
                ended.set()

    threads = [threading.Thread(target=target) for target in (work, work, schedule, schedule)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    children = system.children(array_id)
    assert [child.child_index for child in children] == list(range(60))
    assert Counter(child.state for child in children) == {JobState.COMPLETED: 60}
    finalize_job(system.db, system.store, system.settings, array_id)
    assert system.look(array_id).state == JobState.COMPLETED


def test_a_scheduler_killed_while_it_makes_children_makes_none_twice(system: Arrays) -> None:
    spec = parse_submission({**TEMPLATE, "array": {"values": [f"m{index}" for index in range(10)], "max_parallel": 2}})
    array_id = job_ledger.submit(system.db, spec, project="p").id
    plan_any(system.db, system.store, system.settings, array_id)
    kill_inside(
        system.db,
        "import jobs.ledger.groups.arrays as arrays",
        "arrays.jobs.add",
        f"""
from jobs.ledger.groups.arrays import NewChild
from jobs.specs.inference import parse_spec
document = {{"task": "embeddings", "model": "org/m", "input": {{"path": "x.jsonl"}}}}
children = [NewChild(index, parse_spec(document), document) for index in range(10)]
arrays.fill(database, {array_id!r}, 0, children)
""",
        call=5,
    )
    assert system.children(array_id) == []
    assert system.look(array_id).state == JobState.QUEUED
    for _ in range(2):
        system.fill(array_id)
    assert [child.child_index for child in system.children(array_id)] == list(range(10))
    assert len(system.ready(array_id)) == 2


def test_an_array_ends_when_all_have_ended_and_fails_if_one_did(system: Arrays) -> None:
    array_id = system.submit(3)
    dependent = job_ledger.submit(
        system.db, parse_submission({**TEMPLATE, "model": "m", "after": [f"job:{array_id}"]}), project="p"
    )
    for number, child in enumerate(system.ready(array_id)):
        assert system.look(array_id).state == JobState.RUNNING
        system.end(child, completes=number != 1)
    array = system.look(array_id)
    assert (array.state, array.error_code) == (JobState.FAILED, "children_failed")
    assert array.error_message is not None
    assert array.error_message.startswith("1 of 3 children did not complete")
    assert system.look(dependent.id).state == JobState.CANCELLED
    with system.db.read() as session:
        names = [event.name for event in history.events(session, array_id)]
    assert names == ["job.submitted", "job.queued", "job.failed"]


def test_a_cancel_ends_the_array_and_all_of_its_children(system: Arrays) -> None:
    array_id = system.submit(40)
    make_slots(system.db, system.settings, "s0")
    working, *_ = system.ready(array_id)
    planning.enqueue(system.db, working.id)
    (lease_id,) = grants.grant(system.db, Grant(working.id, ("s0",)), lease_seconds=600.0)
    leases.activate(system.db, lease_id, "s0-1", lease_seconds=600.0)
    assert job_ledger.cancel(system.db, array_id).state == JobState.CANCELLING
    states = Counter(child.state for child in system.children(array_id))
    assert states == {JobState.CANCELLING: 1, JobState.CANCELLED: 3 + AHEAD - 1}
    system.fill(array_id)
    assert len(system.children(array_id)) == 3 + AHEAD, "no child is made any more"
    leases.release(system.db, lease_id, "stopped")
    assert system.look(array_id).state == JobState.CANCELLED
    assert system.children(array_id, *LIVE_JOB_STATES) == []


def test_an_array_without_live_children_is_cancelled_at_once(system: Arrays) -> None:
    spec = parse_submission({**TEMPLATE, "array": {"values": ["a"]}})
    waiting = job_ledger.submit(system.db, spec, project="p").id
    assert job_ledger.cancel(system.db, waiting).state == JobState.CANCELLED
    array_id = system.submit(5)
    assert job_ledger.cancel(system.db, array_id).state == JobState.CANCELLED


def test_a_retry_makes_only_the_children_that_did_not_complete(system: Arrays) -> None:
    array_id = system.submit(6, max_parallel=6)
    for child in system.ready(array_id):
        system.end(child, completes=child.child_index in (0, 2, 5))
    retry = job_ledger.retry(system.db, array_id).id
    assert job_ledger.retry(system.db, array_id).id == retry
    plan_any(system.db, system.store, system.settings, retry)
    system.fill(retry)
    made = system.children(retry)
    assert [(child.child_index, child.spec["model"]) for child in made] == [(1, "org/m1"), (3, "org/m3"), (4, "org/m4")]
    assert system.look(retry).num_rows == 3
    for child in made:
        system.end(child, completes=child.child_index != 3)
    again = job_ledger.retry(system.db, retry).id
    plan_any(system.db, system.store, system.settings, again)
    system.fill(again)
    (last,) = system.children(again)
    assert last.child_index == 3
    system.end(last)
    assert system.look(again).state == JobState.FINALIZING


def test_a_child_that_is_no_spec_fails_and_the_others_run(system: Arrays) -> None:
    field = {"values": [{"k": 3}, {"k": -1}, {"k": 2}]}
    spec = parse_submission({**TEMPLATE, "task": "text-classification", "model": "m", "array": field,
                             "parameters": {"top_k": "${k}"}})  # fmt: skip
    array_id = job_ledger.submit(system.db, spec, project="p").id
    plan_any(system.db, system.store, system.settings, array_id)
    system.fill(array_id)
    (failed,) = system.children(array_id, JobState.FAILED)
    assert (failed.child_index, failed.error_code) == (1, "invalid_spec")
    assert [child.child_index for child in system.ready(array_id)] == [0, 2]


def test_the_rows_of_a_file_are_copied_and_make_a_child_each(system: Arrays, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "parts.jsonl", [{"value": f"m{number}", "other": [1]} for number in range(2500)])
    spec = parse_submission({**TEMPLATE, "array": {"file": str(path), "max_parallel": 2}})
    array_id = job_ledger.submit(system.db, spec, project="p").id
    plan_any(system.db, system.store, system.settings, array_id)
    path.unlink()
    assert system.look(array_id).num_rows == 2500
    system.fill(array_id)
    assert [child.spec["model"] for child in system.children(array_id)][:3] == ["org/m0", "org/m1", "org/m2"]
    job_ledger.cancel(system.db, array_id)
    retry = job_ledger.retry(system.db, array_id).id
    plan_any(system.db, system.store, system.settings, retry)
    assert system.look(retry).num_rows == 2500, "a retry has the same values, though the file is gone"


def test_a_file_that_is_unfit_fails_the_array_with_its_reason(system: Arrays, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "parts.jsonl", [{"value": "a"}, {"value": {"x": 1}}])
    for file, message in ((path, "array.file: row 1: "), (tmp_path / "none.jsonl", "array.file: there is no file")):
        spec = parse_submission({**TEMPLATE, "array": {"file": str(file)}})
        array_id = job_ledger.submit(system.db, spec, project="p").id
        plan_any(system.db, system.store, system.settings, array_id)
        array = system.look(array_id)
        assert array.state == JobState.FAILED
        assert (array.error_message or "").startswith(message)


def test_children_are_kept_as_long_as_their_array(system: Arrays) -> None:
    array_id = system.submit(3)
    for child in system.ready(array_id)[:2]:
        system.end(child)
        set_job(system.db, child.id, ended_at=1.0)
    days = system.settings.model_copy(update={"job_days": 1.0})
    retain(system.db, system.store, days)
    assert len(system.children(array_id)) == 3
    system.end(system.ready(array_id)[0])
    finalize_job(system.db, system.store, system.settings, array_id)
    for job in (*system.children(array_id), system.look(array_id)):
        set_job(system.db, job.id, ended_at=1.0)
    for _ in range(2):
        retain(system.db, system.store, days)
    with system.db.read() as session:
        assert list(session.scalars(select(Job))) == []


def test_the_sweep_leaves_a_running_array_alone(system: Arrays) -> None:
    array_id = system.submit(3)
    reap(system.db, None, system.settings)  # type: ignore[arg-type]
    assert system.look(array_id).state == JobState.RUNNING
