"""Cron entries on both databases: each scheduled time makes one job, whoever fires it and whoever dies meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlmodel import select

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Cron, Job
from jobs.errors import Conflict, InvalidSpec, NotFound
from jobs.ledger import jobs as job_ledger
from jobs.ledger.groups import crons
from jobs.specs.inference import parse_spec
from jobs.specs.schedule import parse_schedule
from scheduler.control.cron import fire_cron
from tests.support.blocked_process import kill_inside
from tests.support.clock import Clock
from tests.support.rows import write_rows

SPEC = parse_spec({"task": "embeddings", "model": "org/model", "input": {"path": "x.jsonl"}})
HOURLY = parse_schedule("0 * * * *", "UTC")


@pytest.fixture
def clock() -> Clock:
    return Clock(at("2026-01-05T08:30"))


@pytest.fixture
def db(database_url: str, clock: Clock) -> Iterator[Database]:
    db = Database(database_url, clock=clock)
    yield db
    db.close()


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def read(db: Database, cron_id: str) -> Cron:
    with db.read() as session:
        return crons.get(session, cron_id)


def jobs_of(db: Database) -> list[Job]:
    with db.read() as session:
        return list(session.scalars(select(Job).order_by(Job.id)))


def due(db: Database) -> list[str]:
    with db.read() as session:
        return crons.due(session)


def test_an_entry_is_due_at_its_times_and_makes_one_job_each(db: Database, clock: Clock) -> None:
    entry = crons.add(db, "hourly", HOURLY, SPEC, project="p")
    assert (entry.next_at, due(db)) == (at("2026-01-05T09:00"), [])
    for hour in (9, 10):
        clock.time = at(f"2026-01-05T{hour:02}:00")
        assert due(db) == [entry.id]
        job_id = crons.fire(db, read(db, entry.id), SPEC)
        assert job_id is not None
        fired = read(db, entry.id)
        assert (fired.last_at, fired.last_job_id, fired.last_error) == (clock.time, job_id, None)
        assert (fired.next_at, due(db)) == (clock.time + 3600, [])
        job_ledger.cancel(db, job_id)
    keys = [(job.project, job.idempotency_key) for job in jobs_of(db)]
    assert keys == [("p", f"p/{entry.id}/2026-01-05T{hour}:00:00Z") for hour in ("09", "10")]


def test_of_missed_times_only_the_last_one_makes_a_job(db: Database, clock: Clock) -> None:
    entry = crons.add(db, "hourly", HOURLY, SPEC, project="p")
    clock.time = at("2026-03-01T12:10")
    assert crons.fire(db, read(db, entry.id), SPEC) is not None
    fired = read(db, entry.id)
    assert (fired.last_at, fired.next_at) == (at("2026-03-01T12:00"), at("2026-03-01T13:00"))
    assert len(jobs_of(db)) == 1


def test_a_time_is_skipped_while_the_last_job_runs(db: Database, clock: Clock) -> None:
    entry = crons.add(db, "hourly", HOURLY, SPEC, project="p")
    clock.time = at("2026-01-05T09:00")
    first = crons.fire(db, read(db, entry.id), SPEC)
    clock.time = at("2026-01-05T10:00")
    assert crons.fire(db, read(db, entry.id), SPEC) is None
    skipped = read(db, entry.id)
    assert skipped.last_error == f"skipped: its last job, {first}, is {JobState.VALIDATING}"
    assert (skipped.last_at, skipped.last_job_id) == (clock.time, first)
    assert skipped.next_at == clock.time + 3600
    assert len(jobs_of(db)) == 1


def test_two_schedulers_that_fire_at_once_make_one_job(db: Database, clock: Clock) -> None:
    entry = crons.add(db, "hourly", HOURLY, SPEC, project="p")
    clock.time = at("2026-01-05T09:00")
    seen = read(db, entry.id)
    start = threading.Barrier(4)
    made: list[str | None] = []

    def fire() -> None:
        start.wait()
        made.append(crons.fire(db, seen, SPEC))

    threads = [threading.Thread(target=fire) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [job.id for job in jobs_of(db)] == [job_id for job_id in made if job_id is not None]
    assert made.count(None) == 3


def test_a_scheduler_killed_in_the_middle_leaves_the_time_to_the_next(database: Database) -> None:
    entry = crons.add(database, "always", parse_schedule("* * * * *", "UTC"), SPEC, project="p")
    with database.write() as tx:
        tx.get_one(Cron, entry.id).next_at = 60.0
    seen = read(database, entry.id)
    kill_inside(
        database,
        "import jobs.ledger.groups.crons as crons",
        "crons.jobs.add",
        f"""
with database.read() as session:
    entry = crons.get(session, {entry.id!r})
from jobs.specs.inference import parse_spec
crons.fire(database, entry, parse_spec(entry.spec))
""",
    )
    assert jobs_of(database) == []
    assert read(database, entry.id).next_at == 60.0
    assert crons.fire(database, seen, SPEC) is not None
    assert crons.fire(database, seen, SPEC) is None
    assert len(jobs_of(database)) == 1


def test_what_a_submission_refuses_makes_no_job_but_an_error(
    db: Database, clock: Clock, settings: Settings, tmp_path: Path
) -> None:
    store = Store(settings.resolved_store_url)
    rows = tmp_path / "rows.jsonl"
    document = {"task": "text-classification", "model": "org/model", "input": {"path": str(rows)}}
    entry = crons.add(db, "hourly", HOURLY, parse_spec(document), project="p")
    fire_cron(db, store, settings, entry.id)
    assert read(db, entry.id).last_at is None, "it is not due yet"
    clock.time = at("2026-01-05T09:00")
    fire_cron(db, store, settings, entry.id)
    refused = read(db, entry.id)
    assert (refused.last_at, refused.last_job_id) == (clock.time, None)
    assert "rows.jsonl" in (refused.last_error or "")
    write_rows(rows, 3)
    clock.time = at("2026-01-05T10:00")
    fire_cron(db, store, settings, entry.id)
    (job,) = jobs_of(db)
    assert (read(db, entry.id).last_job_id, read(db, entry.id).last_error) == (job.id, None)
    assert job.pins is not None
    crons.remove(db, entry.id)
    fire_cron(db, store, settings, entry.id)
    with pytest.raises(NotFound):
        crons.remove(db, entry.id)


def test_a_name_is_taken_once_in_each_project(db: Database) -> None:
    crons.add(db, "hourly", HOURLY, SPEC, project="p")
    crons.add(db, "hourly", HOURLY, SPEC, project="q")
    with pytest.raises(Conflict, match="project 'p' has a cron entry 'hourly' already"):
        crons.add(db, "hourly", HOURLY, SPEC, project="p")


@pytest.mark.parametrize(
    ("expression", "zone", "message"),
    [
        ("0 7 * *", "UTC", "schedule: '0 7 . .' is not a cron expression: it must have 5 fields"),
        ("0 7 * * * *", "UTC", "schedule: .* it must have 5 fields"),
        ("61 7 * * *", "UTC", "schedule: '61 7 . . .' is not a cron expression: its minute is not valid"),
        ("0 0 30 2 *", "UTC", "schedule: "),
        ("0 7 * * *", "Mars/Base", "timezone: there is no time zone 'Mars/Base'"),
        ("0 7 * * *", "../etc/passwd", "timezone: there is no time zone"),
    ],
)
def test_a_schedule_that_is_none_is_refused(expression: str, zone: str, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        parse_schedule(expression, zone)


def test_a_schedule_follows_the_clocks_of_its_zone() -> None:
    zurich = parse_schedule("30 2 * * *", "Europe/Zurich")
    assert zurich.next_after(at("2026-03-28T12:00")) == at("2026-03-29T01:00"), "02:30 does not exist that night"
    assert zurich.next_after(at("2026-03-29T01:00")) == at("2026-03-30T00:30")
    assert zurich.next_after(at("2026-10-24T12:00")) == at("2026-10-25T00:30"), "02:30 occurs twice that night"
    assert zurich.next_after(at("2026-10-25T00:30")) == at("2026-10-26T01:30")
    assert zurich.latest(at("2026-10-26T01:30")) == at("2026-10-26T01:30")
    assert zurich.latest(at("2026-10-26T01:29")) == at("2026-10-25T00:30")
