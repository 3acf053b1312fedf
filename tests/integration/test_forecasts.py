"""Forecasts of a real database: made beside the leader, kept, shown, and compared with what happened."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select
from sqlmodel import SQLModel, col

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import ForecastError, ForecastRecord, Job, Lease
from jobs.ledger.timing import forecasts, speeds
from jobs.ledger.timing.forecasts import Forecast, ForecastTime, What
from jobs.ledger.timing.speeds import Measured, SpeedKey, Unit
from jobs.ledger.timing.workloads import Workload
from jobs.queue import make_app
from scheduler.control.forecast_state import read_state
from scheduler.control.forecaster import Forecaster
from tests.conftest import RedisServer, wait_until
from tests.support.ledger import set_job
from tests.support.live_api import LiveApi, live_api
from tests.support.live_scheduler import LiveScheduler
from tests.support.manual_scheduler import ManualScheduler


@pytest.fixture
def app(settings: Settings, redis_server: RedisServer) -> Iterator[Celery]:
    app = make_app(settings.model_copy(update={"redis_url": redis_server.url}))
    yield app
    app.close()


@pytest.fixture
def scheduler(database: Database, settings: Settings, tmp_path: Path, app: Celery) -> Iterator[ManualScheduler]:
    scheduler = ManualScheduler(database, settings, Store(str(tmp_path / "store")), app)
    scheduler.db = Database(database.url.render_as_string(hide_password=False), clock=scheduler.clock)
    yield scheduler
    scheduler.db.close()


def forecaster(scheduler: ManualScheduler) -> Forecaster:
    resting = threading.Event()
    resting.set()
    return Forecaster(scheduler.db, scheduler.settings, scheduler.settings.projects, lambda: True, resting=resting)


def said(scheduler: ManualScheduler, job_id: str) -> Forecast:
    with scheduler.db.read() as session:
        return forecasts.of_jobs(session, [job_id])[job_id]


def know_speed(db: Database, job_id: str, rows_per_second: float) -> None:
    """As if equal jobs had run before."""
    with db.write() as tx:
        workload = Workload(**(tx.get_one(Job, job_id).workload or {}))
        key = SpeedKey(workload, "cpu CPU", 1, Unit.ROWS)
        speeds.store(tx, key, speeds.NOTHING.with_measured(Measured(key, rows_per_second * 100, 100)))


def everything(db: Database) -> dict[str, list[Any]]:
    """All rows of all tables."""
    with db.read() as session:
        return {
            table.name: [tuple(row) for row in session.execute(select(table).order_by(*table.primary_key))]
            for table in SQLModel.metadata.sorted_tables
        }


def errors_of(db: Database) -> list[ForecastError]:
    with db.read() as session:
        return list(session.scalars(select(ForecastError).order_by(col(ForecastError.what))))


def test_a_forecast_is_kept_for_each_live_job(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    first, second = scheduler.job(num_chunks=4), scheduler.job(num_chunks=2)
    know_speed(scheduler.db, first, rows_per_second=2.0)
    scheduler.dispatch()
    forecaster(scheduler).make()
    now = scheduler.time
    assert said(scheduler, first) == Forecast(None, ForecastTime(now, pytest.approx(now + 20), None, None))
    # The second job may ask the first for its only slot, as the policy would.
    start, end = said(scheduler, second).start, said(scheduler, second).end
    assert start is not None
    assert start.at is not None
    assert now <= start.at <= now + 20.5
    assert end is not None
    assert end.at is not None
    assert end.at - start.at == pytest.approx(10, abs=1)


def test_without_a_measured_speed_nothing_is_made_up(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    job_id, behind = scheduler.job(), scheduler.job(slots={"max": 1})
    scheduler.dispatch()
    forecaster(scheduler).make()
    assert said(scheduler, job_id).end is None
    with scheduler.db.read() as session:
        record = session.get_one(ForecastRecord, behind)
    assert (record.first_start, record.first_end, record.end) == (None, None, None)


def test_reading_and_running_forward_change_no_row(scheduler: ManualScheduler) -> None:
    scheduler.online("s0", "s1")
    job_ids = [scheduler.job(priority=name) for name in ("low", "normal", "high", "high")]
    know_speed(scheduler.db, job_ids[0], rows_per_second=0.5)
    scheduler.dispatch()
    before = everything(scheduler.db)
    with scheduler.db.read() as session:
        state = read_state(session, scheduler.settings, scheduler.settings.projects)
    assert set(state.spans()) == set(job_ids)
    assert everything(scheduler.db) == before


def test_what_happened_is_compared_with_what_was_said(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    job_id = scheduler.job(priority="high")
    now = scheduler.time
    with scheduler.db.write() as tx:
        first = Forecast(ForecastTime(now, now + 40, None, None), ForecastTime(now, now + 140, now + 100, now + 200))
        forecasts.keep(tx, {job_id: first})
        later = ForecastTime(now, now + 999, None, None)
        forecasts.keep(tx, {job_id: Forecast(later, later)})
    scheduler.time += 140
    scheduler.beat("s0")
    assert scheduler.dispatch() == 1
    forecaster(scheduler).make()
    (start,) = errors_of(scheduler.db)
    assert (start.what, start.priority, start.ratio, start.is_inside) == (What.START, 0, pytest.approx(2.0), None)
    set_job(scheduler.db, job_id, state=JobState.COMPLETED, ended_at=now + 190)
    forecaster(scheduler).make()
    end, _ = errors_of(scheduler.db)
    assert (end.what, end.ratio, end.is_inside) == (What.END, pytest.approx(1.25), True)
    with scheduler.db.read() as session:
        assert forecasts.of_jobs(session, [job_id]) == {}
        assert forecasts.accuracy(session)[0, What.END].share_inside == 1.0


def test_only_the_latest_comparisons_are_kept(database: Database) -> None:
    with database.write() as tx:
        for priority, number in ((1, forecasts.MOST_ERRORS + 30), (2, 5)):
            for place in range(number):
                tx.add(ForecastError(priority=priority, what="end", ratio=float(place), at=0.0))
        tx.flush()
        forecasts.forget_old(tx, 1, What.END)
    with database.read() as session:
        found = forecasts.accuracy(session)
    assert found[1, What.END].ratios == tuple(map(float, range(30, forecasts.MOST_ERRORS + 30)))
    assert len(found[2, What.END].ratios) == 5


def test_a_forecast_that_says_the_same_writes_nothing(scheduler: ManualScheduler) -> None:
    scheduler.online("s0")
    job_id = scheduler.job()
    now = scheduler.time
    for moved, is_kept in ((1.0, False), (3.0, False), (50.0, True)):
        new = Forecast(None, ForecastTime(now + 1, now + 500 + moved, None, None))
        with scheduler.db.write() as tx:
            forecasts.keep(tx, {job_id: Forecast(None, ForecastTime(now, now + 500, None, None))})
        with scheduler.db.write() as tx:
            forecasts.keep(tx, {job_id: new})
        assert (said(scheduler, job_id) == new) is is_kept


@pytest.fixture
def system(settings: Settings, database: Database, redis_server: RedisServer) -> Iterator[LiveScheduler]:
    url = database.url.render_as_string(hide_password=False)
    changes = {"database_url": url, "redis_url": redis_server.url, "sweep_seconds": 0.2}
    changes |= {"slot_seconds": 600.0, "lease_seconds": 600.0, "doorbell_seconds": 600.0}  # a busy machine is no death
    system = LiveScheduler(settings.model_copy(update=changes), database)
    yield system
    system.close()


def test_the_leader_makes_a_forecast_soon_after_a_submission(system: LiveScheduler, tmp_path: Path) -> None:
    system.worker()
    system.service().start()
    job_id = system.submit(tmp_path / "rows.jsonl", 100)

    def is_said() -> bool:
        with system.db.read() as session:
            return job_id in forecasts.of_jobs(session, [job_id])

    wait_until(is_said, "no forecast was made")
    with system.db.read() as session:
        assert session.scalar(select(Lease).where(col(Lease.job_id) == job_id)) is not None


@pytest.fixture
def api(settings: Settings, sqlite_database: Database) -> Iterator[LiveApi]:
    with live_api(settings, sqlite_database) as running:
        yield running


def test_the_api_and_the_metrics_show_forecasts(api: LiveApi, scheduler: ManualScheduler) -> None:
    job_id = ManualScheduler(api.database, api.settings, api.store, scheduler.app).job()
    assert api.client.job(job_id)["forecast"] is None
    bound, known = ForecastTime(5.0, None, 10.0, None), ForecastTime(5.0, 20.0, 15.0, 30.0)
    with api.database.write() as tx:
        forecasts.keep(tx, {job_id: Forecast(bound, known)})
        tx.add(ForecastError(priority=1, what="end", ratio=1.5, is_inside=True, at=0.0))
    assert api.client.job(job_id)["forecast"] == {
        "start": {"at": None, "earliest": 10.0, "latest": None, "said_at": 5.0},
        "end": {"at": 20.0, "earliest": 15.0, "latest": 30.0, "said_at": 5.0},
    }
    text = api.http.get("/metrics").text
    assert 'stoker_forecast_ratio{priority="normal",quantile="0.9",what="end"} 1.5' in text
    assert 'stoker_forecast_inside{priority="normal",what="end"} 1.0' in text
    assert 'stoker_forecasts_compared{priority="normal",what="end"} 1.0' in text
