"""Slots load a model for a job only where that pays, by what earlier jobs have left in the database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.tables import Job
from jobs.ledger import chunks
from jobs.ledger.leasing import leases
from jobs.ledger.timing import speeds
from jobs.ledger.timing.speeds import Measured, SpeedKey, Unit
from jobs.ledger.timing.workloads import Workload
from jobs.queue import make_app
from scheduler.control.dispatch.growth_facts import why_not_growing
from scheduler.control.forecast_state import read_state
from tests.conftest import RedisServer
from tests.support.manual_scheduler import ManualScheduler

MODEL_KEY = "text-classification|org/name|auto"


@pytest.fixture
def scheduler(
    database_url: str, settings: Settings, tmp_path: Path, redis_server: RedisServer
) -> Iterator[ManualScheduler]:
    app: Celery = make_app(settings.model_copy(update={"redis_url": redis_server.url}))
    db = Database(database_url, clock=lambda: scheduler.time)
    scheduler = ManualScheduler(db, settings, Store(str(tmp_path / "store")), app)
    yield scheduler
    db.close()
    app.close()


def know(scheduler: ManualScheduler, job_id: str, *, rows_per_second: float, loading_seconds: float | None) -> None:
    """As if equal jobs had run before."""
    with scheduler.db.write() as tx:
        workload = Workload(**(tx.get_one(Job, job_id).workload or {}))
        for unit, per_second in ((Unit.ROWS, rows_per_second), (Unit.LOADS, 1 / (loading_seconds or 1))):
            key = SpeedKey(workload, "cpu CPU", 1, unit)
            if unit is Unit.ROWS or loading_seconds is not None:
                speeds.store(tx, key, speeds.NOTHING.with_measured(Measured(key, per_second * 100, 100.0)))


def why(scheduler: ManualScheduler, job_id: str) -> str | None:
    with scheduler.db.read() as session:
        return why_not_growing(session, scheduler.settings, [session.get_one(Job, job_id)]).get(job_id)


@pytest.mark.parametrize(("loading_seconds", "number"), [(None, 4), (0.001, 4), (3.0, 3), (20.0, 1)])
def test_a_job_starts_on_as_many_slots_as_pay(
    scheduler: ManualScheduler, loading_seconds: float | None, number: int
) -> None:
    """Its 80 rows take 20 s on one slot."""
    scheduler.online("s0", "s1", "s2", "s3")
    job_id = scheduler.job(num_chunks=8)
    know(scheduler, job_id, rows_per_second=4.0, loading_seconds=loading_seconds)
    assert scheduler.dispatch() == number
    reason = "gets no more slots: too little is left to load its model on another one"
    assert why(scheduler, job_id) == (None if number == 4 else f"{reason} ({loading_seconds:.0f} s)")
    scheduler.beat("s0", "s1", "s2", "s3", warm=(MODEL_KEY,))
    assert why(scheduler, job_id) is None
    scheduler.beat("s0", "s1", "s2", "s3")
    chunks.claim(scheduler.db, scheduler.activate("s0"), limit=8)
    assert why(scheduler, job_id) is None, "nothing is left to claim"


def test_a_job_grows_onto_slots_that_have_its_model(scheduler: ManualScheduler) -> None:
    scheduler.online("s0", "s1", "s2", "s3")
    job_id = scheduler.job(num_chunks=8)
    know(scheduler, job_id, rows_per_second=4.0, loading_seconds=20.0)
    assert scheduler.dispatch() == 1
    scheduler.beat("s0", "s1", "s2", "s3", warm=(MODEL_KEY,))
    assert why(scheduler, job_id) is None
    assert scheduler.dispatch() == 3


def test_a_small_high_job_asks_no_more_slots_back_than_pay(scheduler: ManualScheduler) -> None:
    scheduler.online("s0", "s1", "s2", "s3")
    scheduler.job(num_chunks=50, priority="low", model="org/other")
    assert scheduler.dispatch() == 4
    job_id = scheduler.job(num_chunks=8, priority="high")
    know(scheduler, job_id, rows_per_second=4.0, loading_seconds=20.0)
    scheduler.dispatch()
    asked = [slot_id for slot_id in ("s0", "s1", "s2", "s3") if scheduler.lease_on(slot_id).yield_for == job_id]
    assert len(asked) == 1
    leases.release(scheduler.db, scheduler.activate(asked[0]), "yielded")
    assert scheduler.dispatch() == 1
    scheduler.dispatch()
    assert [scheduler.live()[slot_id] for slot_id in asked] == [job_id]
    assert sum(scheduler.lease_on(slot_id).yield_asked for slot_id in ("s0", "s1", "s2", "s3")) == 0
    assert why(scheduler, job_id) is None, "no slot is free"


def test_a_forecast_knows_that_a_job_stays_on_its_slot(scheduler: ManualScheduler) -> None:
    scheduler.online("s0", "s1", "s2", "s3")
    job_id = scheduler.job(num_chunks=8)
    know(scheduler, job_id, rows_per_second=4.0, loading_seconds=20.0)
    with scheduler.db.read() as session:
        span = read_state(session, scheduler.settings, {}).spans()[job_id]
    assert span.end is not None
    assert span.end.at - scheduler.time == pytest.approx(20.0, abs=1.0)
