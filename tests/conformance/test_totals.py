"""The totals of all jobs are exact whatever changes them, and reading them costs no more with more jobs."""

from __future__ import annotations

import contextlib
import random
from typing import Any

from sqlalchemy import delete, event, insert, select, text, update
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.states import LIVE_JOB_STATES, ChunkState, JobState
from jobs.db.tables import Chunk, Job, JobTotal, LeaseCounts
from jobs.ledger.accounts import totals, usage
from jobs.ledger.accounts.totals import NUMBERS, Totals
from scheduler.admin.metrics import snapshot
from tests.support.statements import analyze, count_commits, count_steps, explained

_CHANGES = ("insert", "recorded", "state", "numbers", "both", "delete")


def job_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of a queued job."""
    row = {"id": f"job_{number:06}", "kind": "inference", "state": JobState.QUEUED, "spec": {}, "num_rows": 10}
    row |= {"own_done": 0, "own_failed": 0, "own_tokens": 0, "started_at": 1.0}
    return {**row, "priority": number % 3, "created_at": float(number), "ready_at": float(number), **changes}


def counted(db: Database) -> Totals:
    """The totals, counted from the jobs themselves."""
    found: Totals = {}
    with db.read() as session:
        for job in session.scalars(select(Job)):
            total = found.setdefault((job.kind, job.state), totals.Counter())
            total.update({"num_jobs": 1} | {name: getattr(job, name) for name in NUMBERS if name != "num_jobs"})
    return found


def kept(db: Database) -> Totals:
    """The totals as they are kept, without states that no job is in."""
    with db.read() as session:
        return {key: numbers for key, numbers in totals.read(session).items() if any(numbers.values())}


def rows_left(db: Database, project: str) -> int:
    """Unfinished rows of a project's inference jobs, from the totals."""
    with db.read() as session:
        return usage.queue_of(session, project).num_rows


def counted_left(db: Database, project: str) -> int:
    """The same, counted from the jobs themselves."""
    mine = (col(Job.project) == project, col(Job.kind) == "inference", col(Job.state).in_(LIVE_JOB_STATES))
    with db.read() as session:
        return sum(job.num_rows - job.num_done for job in session.scalars(select(Job).where(*mine)))


def num_rows(db: Database) -> int:
    """Number of rows that a reader adds up."""
    with db.read() as session:
        return len(session.scalars(select(JobTotal)).all())


def test_totals_follow_every_change_of_a_job(database: Database) -> None:
    rng = random.Random(13)
    for step in range(150):
        with database.write() as tx:
            ids = list(tx.scalars(select(col(Job.id)).order_by(col(Job.id))))
            change = rng.choice([*_CHANGES, "insert", "recorded", "state"])
            some = rng.sample(ids, min(len(ids), rng.randint(1, 4)))
            numbers = {name: rng.randint(0, 50) for name in ("num_rows", "own_done", "own_failed", "own_tokens")}
            running = list(tx.scalars(select(col(Job.id)).where(col(Job.state).in_(totals._CHANGING))))
            if change == "recorded" and running:  # leases record results only while their job runs
                counts = {name: rng.randint(0, 50) for name in ("num_done", "num_failed", "num_tokens")}
                tx.add(LeaseCounts(lease_id=f"lease_{step}", job_id=rng.choice(running), **counts))
            elif change == "insert":
                state, kind = rng.choice(list(JobState)), rng.choice(["inference", "training"])
                project = rng.choice(["a", "b"])
                tx.execute(insert(Job), [job_row(step, state=state, kind=kind, project=project, **numbers)])
            elif change == "delete":
                tx.execute(delete(Job).where(col(Job.id).in_(some[:1])))
                tx.execute(delete(LeaseCounts).where(col(LeaseCounts.job_id).in_(some[:1])))
            elif change != "recorded":
                values: dict[str, Any] = {} if change == "state" else numbers
                if change != "numbers":
                    values["state"] = rng.choice(list(JobState))
                tx.execute(update(Job).where(col(Job.id).in_(some)).values(**values))
        assert kept(database) == counted(database), (step, change)
        assert [rows_left(database, name) for name in "abc"] == [counted_left(database, name) for name in "abc"], step
        if step % 40 == 39:
            totals.merge(database)
    assert kept(database) == counted(database)


def test_a_change_that_is_rolled_back_counts_nothing(database: Database) -> None:
    with contextlib.suppress(ZeroDivisionError), database.write() as tx:
        tx.execute(insert(Job), [job_row(1)])
        assert totals.read(tx)
        raise ZeroDivisionError
    assert kept(database) == {}


def test_rows_are_merged_and_the_totals_stay(database: Database) -> None:
    for number in range(totals._MOST_PARTS // 2):
        with database.write() as tx:
            tx.execute(insert(Job), [job_row(number)])
            tx.execute(update(Job).values(state=JobState.QUEUED, own_done=number))
    assert num_rows(database) > totals._MOST_PARTS
    before = kept(database)
    totals.merge(database)
    assert num_rows(database) == 1
    assert kept(database) == before == counted(database)


def test_many_projects_are_not_merged_again_and_again(database: Database) -> None:
    with database.write() as tx:
        num_projects = totals._MOST_PARTS + 10
        tx.execute(insert(Job), [job_row(number, project=f"p{number:04}") for number in range(num_projects)])
    totals.merge(database)
    with count_commits(database) as commits:
        totals.merge(database)
    assert commits.number == 0, "it only looked"
    assert rows_left(database, "p0003") == 10


def test_a_project_without_jobs_leaves_nothing(database: Database) -> None:
    for number in range(totals._MOST_PARTS):
        with database.write() as tx:
            tx.execute(insert(Job), [job_row(number)])
            tx.execute(delete(Job))
    totals.merge(database)
    assert num_rows(database) == 0


def test_a_running_jobs_progress_adds_no_rows(database: Database) -> None:
    with database.write() as tx:
        tx.execute(insert(Job), [job_row(1, state=JobState.RUNNING)])
    before = num_rows(database)
    for done in range(1, 6):
        with database.write() as tx:
            tx.execute(update(Job).values(own_done=done, own_tokens=done * 7))
    assert num_rows(database) == before
    assert kept(database) == counted(database)


def fill(db: Database, num_queued: int, num_ended: int) -> None:
    """Insert jobs with a chunk each, merge their totals, and let PostgreSQL learn the sizes of the tables."""
    rows = [job_row(number) for number in range(num_queued)]
    ended = {"state": JobState.COMPLETED, "own_done": 10}
    rows += [job_row(number + 500_000, **ended) for number in range(num_ended)]
    rows += [job_row(number + 900_000, state=JobState.RUNNING) for number in range(3)]
    with db.write() as tx:
        tx.execute(delete(Chunk))
        tx.execute(delete(Job))
        tx.execute(insert(Job), rows)
        chunk = {"start_row": 0, "stop_row": 10, "locator": {}, "state": ChunkState.PENDING}
        tx.execute(delete(LeaseCounts))
        tx.execute(insert(LeaseCounts), [{"lease_id": row["id"], "job_id": row["id"]} for row in rows])
        tx.execute(insert(Chunk), [{"job_id": row["id"], **chunk} for row in rows])
    totals.merge(db)
    if not db.is_sqlite:
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


def test_a_projects_queue_is_read_without_its_waiting_jobs(database: Database) -> None:
    fill(database, 3000, 3000)
    analyze(database)
    with explained(database) as plans, database.read() as session:
        queue = usage.queue_of(session, "default")
    assert queue.num_rows == 30_030
    assert not queue.is_uncounted
    plans.assert_indexed()
    text = "\n".join(plans.found.values())
    assert "jobs_uncounted" in text
    assert "jobs_at_work" in text


def test_a_projects_queue_takes_as_many_steps_with_more_jobs(sqlite_database: Database) -> None:
    def steps_with(num_jobs: int) -> int:
        fill(sqlite_database, num_jobs, num_jobs)
        with count_steps(sqlite_database) as steps, sqlite_database.read() as session:
            assert usage.queue_of(session, "default").num_rows == 10 * num_jobs + 30
        return steps.number

    few, many = steps_with(100), steps_with(3000)
    assert few > 100
    assert many <= few * 1.1


def test_metrics_take_as_many_steps_of_sqlite_with_more_jobs(sqlite_database: Database) -> None:
    def steps_with(num_jobs: int) -> int:
        fill(sqlite_database, num_jobs, num_jobs)
        with count_steps(sqlite_database) as steps:
            assert snapshot(sqlite_database).jobs[JobState.QUEUED] == num_jobs
        return steps.number

    few, many = steps_with(100), steps_with(3000)
    assert few > 100
    assert many <= few * 1.1


def test_metrics_scan_no_table_of_jobs_on_postgresql(postgres_url: str) -> None:
    database = Database(postgres_url)
    fill(database, 3000, 3000)
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    assert snapshot(database).jobs[JobState.QUEUED] == 3000
    event.remove(database.engine, "before_cursor_execute", note)
    statements = [(statement, parameters) for statement, parameters in seen if "jobs" in statement]
    with database.engine.connect() as connection:
        plans = [
            "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
            for statement, parameters in statements
        ]
    database.close()
    assert len(plans) == 3
    assert not [plan for plan in plans if "Seq Scan on jobs" in plan or "Seq Scan on chunks" in plan], plans
