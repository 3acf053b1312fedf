"""Promises through the API: admitted or refused with one sentence, and kept by the dispatcher."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from jobs.config.limits import Limits, ProjectLimits
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Job
from jobs.ledger import jobs as job_ledger
from jobs.ledger import planning
from jobs.ledger.timing import speeds
from jobs.ledger.timing.speeds import Measured, SpeedKey, Unit
from jobs.ledger.timing.workloads import workload_of
from jobs.specs.inference import parse_spec
from jobs.specs.needs import Needs
from scheduler.control.admission.promise_admission import Assessment, assess
from scheduler.control.admission.submission import Size, Submission
from scheduler.control.dispatch.dispatcher import read_policy_input
from scheduler.control.dispatch.slot_facts import read_slots
from scheduler.control.planning.planner import plan_job
from scheduler.forecast.estimates import estimate
from tests.support.ledger import hold, make_slots, set_job
from tests.support.live_api import LiveApi, live_api, spec_document
from tests.support.rows import write_rows

NOW = 1_800_000_000.0
NUM_ROWS = 640
TRAINING = {"kind": "training", "task": "text-classification", "model": "org/model", "data": {"train": "rows.jsonl"}}


@pytest.fixture
def api(settings: Settings, database_url: str) -> Iterator[LiveApi]:
    """An API whose clock stands still."""
    database = Database(database_url, clock=lambda: NOW)
    with live_api(settings, database) as running:
        yield running
    database.close()


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    return spec_document(write_rows(tmp_path / "rows.jsonl", NUM_ROWS), batching={"chunk_rows": 32})


def at(seconds: float) -> str:
    """A time, counted from now, as a spec has it."""
    return datetime.fromtimestamp(NOW + seconds, UTC).isoformat()


def know_speed(api: LiveApi, document: dict[str, Any]) -> float:
    """As if an equal job had run at a row per second. Returns the upper bound of a job's slot-seconds."""
    key = SpeedKey(workload_of(parse_spec(document), None), "cpu CPU", 1, Unit.ROWS)
    speed = speeds.NOTHING.with_measured(Measured(key, 100.0, 100.0))
    with api.database.write() as tx:
        speeds.store(tx, key, speed)
    return NUM_ROWS / estimate([key], {key: speed})["cpu CPU"].slow


def num_jobs(api: LiveApi) -> int:
    with api.database.read() as session:
        return len(session.scalars(select(Job)).all())


def refusal(api: LiveApi, document: dict[str, Any], seconds: float) -> str:
    answer = api.http.post("/v1/jobs", json={**document, "promise": at(seconds)})
    assert answer.status_code == 409, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("promise_refused", "promise")
    return str(error["message"])


def promised(api: LiveApi, document: dict[str, Any], seconds: float) -> str:
    answer = api.http.post("/v1/jobs", json={**document, "promise": at(seconds)})
    assert answer.status_code == 201, answer.text
    assert answer.json()["promise_at"] == pytest.approx(NOW + seconds, abs=1e-3)
    return str(answer.json()["id"])


def test_what_was_never_measured_is_not_promised(api: LiveApi, document: dict[str, Any]) -> None:
    assert "no slots that can run this job" in refusal(api, document, 9000)
    make_slots(api.database, api.settings, "s0")
    assert "equal work has never been measured" in refusal(api, document, 9000)
    assert api.client.plan(document)["earliest_promise"] is None
    assert num_jobs(api) == 0


def test_a_refusal_has_the_earliest_time_that_would_be_taken(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0", "s1")
    upper = know_speed(api, document)
    assert upper > NUM_ROWS
    earliest = api.client.plan(document)["earliest_promise"] - NOW
    assert earliest == pytest.approx(1.1 * upper / 2)
    named = refusal(api, document, earliest - 1).rpartition(" ")[2]
    assert 0 <= datetime.fromisoformat(named).timestamp() - NOW - earliest <= 60
    assert num_jobs(api) == 0
    assert api.http.post("/v1/jobs", json={**document, "promise": named}).status_code == 201


def test_a_promise_leaves_room_for_those_before_it(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0")
    upper = know_speed(api, document)
    first = promised(api, document, 1.1 * upper + 1)
    refusal(api, document, 1.1 * upper + 1)
    promised(api, document, 2.2 * upper + 2)
    set_job(api.database, first, num_rows=NUM_ROWS, num_done=NUM_ROWS // 2)
    assert api.client.plan(document)["earliest_promise"] - NOW == pytest.approx(2.75 * upper, abs=3)
    set_job(api.database, first, state=JobState.COMPLETED)
    assert api.client.plan(document)["earliest_promise"] - NOW == pytest.approx(1.1 * upper, abs=3)


def test_a_project_gets_no_more_than_its_share(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0", "s1", "s2", "s3")
    upper = know_speed(api, document)
    assert api.client.plan(document)["earliest_promise"] - NOW == pytest.approx(1.1 * upper / 4)
    job_ledger.submit(api.database, parse_spec(document), project="theirs")
    assert api.client.plan(document)["earliest_promise"] - NOW == pytest.approx(1.1 * upper / 2)


def test_the_share_of_a_project_is_by_weight(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0", "s1", "s2", "s3")
    upper = know_speed(api, document)
    job_ledger.submit(api.database, parse_spec(document), project="theirs")
    theirs = {"theirs": ProjectLimits(weight=3.0)}
    submission = Submission(
        parse_spec(document), "default", workload_of(parse_spec(document), None), Needs(), Size(NUM_ROWS, 20)
    )

    def assessed(limits: Limits) -> Assessment:
        with api.database.read() as session:
            return assess(session, submission, read_slots(session, api.settings, NOW), limits)

    assert assessed({}).earliest == pytest.approx(NOW + 1.1 * upper / 2)
    assert assessed(theirs).earliest == pytest.approx(NOW + 1.1 * upper / 1)
    assert assessed(theirs | {"default": ProjectLimits(weight=9.0)}).earliest == pytest.approx(NOW + 1.1 * upper / 3)
    assert assessed(theirs | {"default": ProjectLimits(slots=4)}).earliest == pytest.approx(NOW + 1.1 * upper / 4)
    refused = assessed({"default": ProjectLimits(weight=0.0)})
    assert (refused.earliest, "the project has weight 0" in refused.reason) == (None, True)
    refused = assessed({"default": ProjectLimits(gpu_hours=0.0)})
    assert (refused.earliest, "the project has used its GPU hours" in refused.reason) == (None, True)


def test_slots_of_trainings_without_a_promise_do_not_count(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0", "s1")
    upper = know_speed(api, document)
    job_id = job_ledger.submit(api.database, parse_spec(TRAINING)).id
    planning.enqueue(api.database, job_id)
    hold(api.database, job_id, "s0")
    assert api.client.plan(document)["earliest_promise"] - NOW == pytest.approx(1.1 * upper)


def test_the_dispatcher_gives_a_promised_job_what_it_needs(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, *(f"s{number}" for number in range(8)))
    upper = know_speed(api, document)
    job_id = promised(api, document, 1.1 * upper / 3 + 1)
    plan_job(api.database, api.store, api.settings, job_id)
    with api.database.read() as session:
        (facts,) = read_policy_input(session, api.settings).jobs
    assert (facts.id, facts.entitled) == (job_id, 3)


@pytest.mark.parametrize("waits", [{"start_at": "2099-01-01T00:00Z"}, {"after": True}])
def test_a_job_that_begins_later_is_not_promised(api: LiveApi, document: dict[str, Any], waits: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0")
    know_speed(api, document)
    if "after" in waits:
        waits = {"after": [f"job:{api.client.submit(document)['id']}"]}
    assert "begins later or comes after other jobs" in refusal(api, {**document, **waits}, 90_000)


def test_a_retry_has_no_promise(api: LiveApi, document: dict[str, Any]) -> None:
    make_slots(api.database, api.settings, "s0")
    job_id = promised(api, document, 3 * know_speed(api, document))
    assert api.client.cancel(job_id)["state"] == "cancelled"
    assert api.client.retry(job_id)["promise_at"] is None


@pytest.mark.parametrize("value", ["tomorrow", "2026-13-01", 1_800_000_000, "", None])
def test_a_promise_is_a_time(api: LiveApi, document: dict[str, Any], value: Any) -> None:
    answer = api.http.post("/v1/jobs", json={**document, "promise": value})
    if value is None:
        assert answer.status_code == 201
        return
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "promise"
    assert answer.json()["error"]["message"].startswith("promise: ")


def test_a_time_without_an_offset_is_in_utc(document: dict[str, Any]) -> None:
    for text in ("2026-12-01T07:00", "2026-12-01T07:00Z", "2026-12-01T08:00+01:00"):
        spec = parse_spec({**document, "promise": text})
        assert spec.model_dump(mode="json")["promise"] == "2026-12-01T07:00:00Z"
        assert parse_spec(spec.model_dump(mode="json")) == spec
