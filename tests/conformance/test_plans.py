"""Queries that run all the time use indexes on SQLite and PostgreSQL, however many jobs and chunks there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import insert
from sqlmodel import SQLModel

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import ChunkState, JobState, LeaseState, SlotState
from jobs.db.tables import Attempt, Chunk, Job, Lease, LeaseCounts, Slot
from jobs.ledger import chunks
from jobs.ledger import jobs as job_ledger
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.groups import arrays
from jobs.ledger.leasing import leases, lost_work, next_job
from jobs.queue import make_app
from jobs.specs.inference import Priority
from scheduler.control import service_pools
from scheduler.control.dispatch.dispatcher import read_policy_input
from scheduler.control.reaper import reap
from tests.conftest import migrate, run_sql, url_of
from tests.support.ledger import results_of
from tests.support.statements import analyze, explained

NOW = 1_000_000.0
NUM_ENDED, NUM_WAITING, NUM_RUNNING = 3000, 2000, 20
HUGE_CHUNKS = 60_000  # of one job, so that most pending chunks are of a single job
PROJECTS = ("a", "b")


def write(db: Database, table: type[SQLModel], rows: list[dict[str, Any]]) -> None:
    with db.engine.connect() as connection, connection.begin():
        connection.execute(insert(table), rows)


def job(number: int, state: JobState, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"job_{state}_{number:06}",
        "kind": "training" if number % 4 == 3 else "inference",
        "state": state,
        "spec": {},
        "priority": number % len(Priority),
        "model_key": "m",
        "num_rows": 10,
        "num_done": 0,
        "num_failed": 0,
        "num_tokens": 0,
        "crashes": 0,
        "attempt": 1,
        "project": PROJECTS[number % 2],
        "created_at": NOW - 10_000 + number,
        "ready_at": NOW - 10_000 + number,
        "not_before": 0.0,
        **fields,
    }


def chunk(job_id: str, number: int, state: ChunkState = ChunkState.PENDING, **fields: Any) -> dict[str, Any]:
    place = {"job_id": job_id, "start_row": number * 10, "stop_row": number * 10 + 10, "locator": {}}
    return {**place, "state": state, "attempt": 1, "crashes": 0, "errors": 0, "not_before": 0.0, **fields}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database of each kind with thousands of ended and waiting jobs, and one huge job."""
    server = None
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('plans') / 'full.db'}"
    else:
        server = request.getfixturevalue("postgres_server")
        run_sql(server, "CREATE DATABASE plans")
        url = url_of(server, "plans")
    migrate(url)
    db = Database(url, clock=lambda: NOW)
    deadlines = {"deadline_at": NOW - 5000, "ended_at": NOW - 6000, "started_at": NOW - 7000}
    write(db, Job, [job(number, JobState.COMPLETED, **deadlines) for number in range(NUM_ENDED)])
    later = {"deadline_at": NOW + 5000, "ended_at": None, "started_at": NOW - 6000}
    waiting = [job(number, JobState.QUEUED, **later) for number in range(NUM_WAITING)]
    running = [job(number, JobState.RUNNING, **later) for number in range(NUM_RUNNING)]
    write(db, Job, waiting + running)
    write(db, Chunk, [chunk(one["id"], 0) for one in waiting if one["kind"] == "inference"])
    write(db, Chunk, [chunk(waiting[0]["id"], number) for number in range(1, HUGE_CHUNKS)])
    write(db, Slot, [
        {
            "id": f"s{number}", "host": "here", "device": "cpu", "name": "CPU", "memory_bytes": 0, "num_threads": 1,
            "state": SlotState.ONLINE, "warm_models": [], "incarnation": "", "registered_at": NOW, "heartbeat_at": NOW,
        }
        for number in range(NUM_RUNNING)
    ])  # fmt: skip
    ended = [
        {
            **lease(number), "id": f"lease_{number}", "state": LeaseState.RELEASED, "ended_at": NOW,
            "job_id": f"job_{JobState.COMPLETED}_{number:06}",
        }
        for number in range(NUM_ENDED)
    ]  # fmt: skip
    live = [lease(number) for number in range(NUM_RUNNING)]
    write(db, Lease, ended)
    write(db, Lease, live)
    held = [chunk(one["job_id"], number, ChunkState.LEASED, lease_id=one["id"]) for one in live for number in range(2)]
    done = [
        chunk(one["job_id"], number, ChunkState.DONE, lease_id=one["id"]) for one in live for number in range(2, 100)
    ]
    write(db, Chunk, held + done)
    recorded = {"num_done": 10, "num_failed": 0, "num_tokens": 0, "num_first": 0, "is_mixed": False}
    write(db, LeaseCounts, [{"lease_id": one["id"], "job_id": one["job_id"], **recorded} for one in ended + live])
    write(db, Attempt, [
        {
            "job_id": f"job_{JobState.COMPLETED}_{number:06}", "number": 1, "lease_id": f"lease_{number}",
            "slot_id": "s0", "started_at": NOW, "resumed_step": 0, "last_step": 0, "num_halvings": 0,
        }
        for number in range(NUM_ENDED)
    ])  # fmt: skip
    analyze(db)
    yield db
    db.close()
    if server is not None:
        run_sql(server, "DROP DATABASE plans WITH (FORCE)")


def lease(number: int) -> dict[str, Any]:
    return {
        "id": f"lease_live_{number}", "job_id": f"job_{JobState.RUNNING}_{number % NUM_RUNNING:06}",
        "slot_id": f"s{number % NUM_RUNNING}", "state": LeaseState.ACTIVE, "rank": 0, "attempt": 1,
        "yield_asked": False, "shutdown_asked": False, "rings": 1, "granted_at": NOW, "rung_at": NOW,
        "expires_at": NOW + 100,
    }  # fmt: skip


def test_a_pass_reads_only_the_head_of_the_queue(full: Database, settings: Settings) -> None:
    with explained(full) as plans, full.read() as session:
        found = read_policy_input(session, settings)
    plans.assert_indexed()
    kinds = [one.elastic for one in found.jobs]
    most = 2 * len(Priority) * (NUM_RUNNING + 64) + NUM_RUNNING  # trainings and bulk jobs each have a head
    assert NUM_RUNNING < len(kinds) <= most
    assert {True, False} == set(kinds), "bulk jobs and trainings wait"


def test_the_sweep_of_an_idle_second_scans_nothing(full: Database, settings: Settings) -> None:
    app = make_app(settings)
    with explained(full) as plans:
        assert not reap(full, app, settings)
    plans.assert_indexed()
    with explained(full) as plans, full.read() as session:
        for state in (JobState.VALIDATING, JobState.FINALIZING):
            assert session.execute(service_pools._URGENT, {"state": state, "now": NOW, "most": 200}).all() == []
        assert arrays.to_fill(session) == []
    plans.assert_indexed()
    app.close()


@pytest.mark.parametrize("project", [None, "a"])
@pytest.mark.parametrize("state", [None, JobState.QUEUED, JobState.FAILED])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_page_of_jobs_is_read_in_the_order_of_an_index(
    full: Database, project: str | None, state: JobState | None, order: Any
) -> None:
    with explained(full) as plans, full.read() as session:
        which = {"project": project, "state": state, "order": order}
        first, has_more = job_ledger.list_jobs(session, limit=20, **which)  # type: ignore[arg-type]
        if has_more:
            job_ledger.list_jobs(session, limit=20, after=first[-1].id, **which)  # type: ignore[arg-type]
    assert has_more == (state is not JobState.FAILED)
    plans.assert_indexed()
    assert not any("Sort" in plan or "TEMP B-TREE" in plan for plan in plans.found.values())


def test_the_end_of_a_lease_finds_its_chunks_and_no_others(full: Database) -> None:
    with explained(full) as plans, full.write() as tx:
        lost_work.return_chunks(tx, "lease_live_0")
        tx.rollback()
    plans.assert_indexed()
    with explained(full) as plans:
        leases.ask_yield(full, {"lease_live_1": "job"})
    plans.assert_indexed()


def test_the_next_job_of_a_slot_is_found_in_the_order_of_an_index(full: Database) -> None:
    with explained(full) as plans, full.write() as tx:
        job_id = next_job._next_job(tx, tx.get_one(Lease, "lease_live_4"))
        tx.rollback()
    assert job_id == f"job_{JobState.QUEUED}_{4:06}"
    plans.assert_indexed()
    head, locked = (plan for statement, plan in plans.found.items() if "LIMIT" in statement)
    assert "jobs_by_state" in head
    assert "jobs_waiting" not in head + locked, "all waiting jobs of the project"


def test_a_commit_finds_its_rows_by_index_and_changes_no_row_of_its_job(full: Database) -> None:
    with explained(full) as plans:
        chunks.commit(full, "lease_live_2", [ChunkResults(0, 10, results_of(0, 10))])
    plans.assert_indexed()
    assert not any(statement.startswith("UPDATE jobs") for statement in plans.found)
    with explained(full) as plans:
        chunks.commit(full, "lease_live_2", [ChunkResults(10, 20, results_of(10, 20))])
    plans.assert_indexed()
    with full.read() as session:
        job = job_ledger.get(session, f"job_{JobState.RUNNING}_{2:06}")
    assert (job.state, job.num_done) == (JobState.FINALIZING, 30)
