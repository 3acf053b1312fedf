"""A plan says what a submission would lead to, and changes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import SQLModel

from jobs.config.settings import Settings
from jobs.data.sources import ChunkRange
from jobs.db.database import Database
from jobs.db.tables import Job
from jobs.ledger import jobs as job_ledger
from jobs.ledger import planning
from jobs.ledger.timing import speeds
from jobs.ledger.timing.speeds import Measured, SpeedKey, Unit
from jobs.ledger.timing.workloads import workload_of
from jobs.specs.inference import parse_spec
from scheduler.cli import main
from scheduler.control.forecaster import Forecaster
from scheduler.control.planning.planner import plan_job
from tests.support.ledger import hold, make_slots
from tests.support.live_api import LiveApi, live_api, spec_document
from tests.support.rows import write_rows

NOW = 1_000_000.0
ROWS_PER_SECOND = 2.0


@pytest.fixture
def api(settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveApi]:
    """An API whose clock stands still, so that nothing moves but what a test does."""
    database = Database(database_url, clock=lambda: NOW)
    with live_api(settings, database) as running:
        monkeypatch.setenv("STOKER_URL", running.url)
        monkeypatch.setenv("STOKER_API_KEY", running.key)
        yield running
    database.close()


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """A spec of 64 rows in two chunks."""
    return spec_document(write_rows(tmp_path / "rows.jsonl", 64), batching={"chunk_rows": 32})


def know_speed(api: LiveApi, document: dict[str, Any]) -> None:
    """As if an equal job had run before."""
    key = SpeedKey(workload_of(parse_spec(document), None), "cpu CPU", 1, Unit.ROWS)
    with api.database.write() as tx:
        speeds.store(tx, key, speeds.NOTHING.with_measured(Measured(key, ROWS_PER_SECOND * 100, 100.0)))


def occupy(api: LiveApi, document: dict[str, Any], slot_id: str, num_rows: int, project: str = "default") -> str:
    """A job of so many rows that runs on a slot and stands still."""
    job = job_ledger.submit(api.database, parse_spec(document), project=project)
    planning.plan(api.database, job.id, [ChunkRange(row, row + 10, {}) for row in range(0, num_rows, 10)])
    hold(api.database, job.id, slot_id)
    return job.id


def everything(db: Database) -> dict[str, list[Any]]:
    """All rows of all tables."""
    with db.read() as session:
        return {
            table.name: [tuple(row) for row in session.execute(select(table).order_by(*table.primary_key))]
            for table in SQLModel.metadata.sorted_tables
        }


def forecast_of(api: LiveApi, job_id: str) -> Any:
    resting = threading.Event()
    resting.set()
    Forecaster(api.database, api.settings, api.settings.projects, lambda: True, resting=resting).make()
    return api.client.job(job_id)["forecast"]


def test_a_plan_changes_no_row_of_any_table(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0")
    know_speed(api, document)
    occupy(api, document, "s0", 100)
    before = everything(api.database)
    found = api.client.plan({**document, "priority": "high"})
    assert (found["object"], found["total"], found["chunks"]) == ("plan", 64, 2)
    assert everything(api.database) == before


def test_a_submission_starts_when_the_plan_said(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0")
    know_speed(api, document)
    occupy(api, document, "s0", 100)
    later = {**document, "priority": "low"}
    planned = api.client.plan(later)["forecast"]
    assert planned["start"]["at"] == pytest.approx(NOW + 100 / ROWS_PER_SECOND)
    job_id = api.client.submit(later)["id"]
    plan_job(api.database, api.store, api.settings, job_id)
    assert forecast_of(api, job_id) == planned


def test_a_promised_job_ends_when_the_plan_said(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0")
    know_speed(api, document)
    occupy(api, document, "s0", 1000)
    promised = {**document, "promise": "1970-01-12T13:49Z"}  # 140 s after that clock's time; it takes 32 s
    plan = api.client.plan(promised)
    assert plan["earliest_promise"] < NOW + 140
    job_id = api.client.submit(promised)["id"]
    plan_job(api.database, api.store, api.settings, job_id)
    assert forecast_of(api, job_id) == plan["forecast"]
    assert plan["forecast"]["end"]["at"] < NOW + 140


def test_a_plan_names_whom_it_delays_and_counts_other_projects(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0", "s1")
    know_speed(api, document)
    mine, theirs = occupy(api, document, "s0", 100), occupy(api, document, "s1", 100, project="theirs")
    urgent = {**document, "priority": "high"}
    found = api.client.plan(urgent)
    assert {delay["job_id"] for delay in found["delays"]} == {mine, theirs}
    assert all(delay["seconds"] > 1 for delay in found["delays"])
    other = api.client_of("theirs").post("/v1/plan", json=urgent).json()
    assert [delay["job_id"] for delay in other["delays"]] == [theirs]
    assert other["delays_elsewhere"] == 1
    assert found["slots"][0]["at"] == found["forecast"]["start"]["at"]
    assert found["slots"][-1] == {"at": found["forecast"]["end"]["at"], "slots": 0}


def test_a_plan_of_unknown_speed_has_a_start_and_no_end(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0")
    forecast = api.client.plan(document)["forecast"]
    assert forecast["start"]["at"] == NOW
    assert forecast["end"] is None


def test_a_plan_makes_the_checks_of_a_submission(api: LiveApi, document: dict[str, Any]) -> None:
    for change, param in (
        ({"input": {"path": "/nowhere.jsonl"}}, "input.path"),
        ({"tusk": "x"}, "tusk"),
        ({"input": {**document["input"], "columns": {"text": "absent"}}}, "input.columns.text"),
        ({"promise": "1970-01-01T00:00"}, "promise"),
        ({"promise": "tomorrow"}, "promise"),
    ):
        answers = [api.http.post(path, json={**document, **change}) for path in ("/v1/plan", "/v1/jobs")]
        refused = 409 if change == {"promise": "1970-01-01T00:00"} else 400
        assert [answer.status_code for answer in answers] == [refused, refused]
        assert answers[0].json()["error"]["param"] == param
        assert answers[0].json()["error"]["message"] == answers[1].json()["error"]["message"]
    with api.database.read() as session:
        assert session.scalars(select(Job)).all() == []


def test_an_array_is_not_planned(api: LiveApi, document: dict[str, Any]) -> None:
    for field in ("array", "sweep"):
        answer = api.http.post("/v1/plan", json={**document, field: {"values": [1]}})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == f"{field}: cannot be planned; plan the spec of one child"


def test_the_command_prints_the_plan(
    api: LiveApi, document: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_slots(api.database, api.settings, "s0")
    know_speed(api, document)
    job_id = occupy(api, document, "s0", 100)
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({**document, "priority": "high"}))
    assert main(["plan", str(spec)]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "rows 64 in 2 chunks starts about" in out
    assert "slots 1 from" in out
    assert job_id in out
    assert main(["plan", str(spec), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == api.client.plan({**document, "priority": "high"})
