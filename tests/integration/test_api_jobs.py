"""The routes of jobs over a real socket: submitting leaves one job or none, and every answer has its frozen form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import select

from jobs.config.settings import Settings
from jobs.data.store_keys import artifact_key
from jobs.db.database import Database
from jobs.db.states import JobState, LeaseState, SlotState
from jobs.db.tables import Artifact, Job, Lease, Slot
from jobs.errors import NotKept, StokerError
from jobs.ledger import jobs as job_ledger
from jobs.ledger import overdue, slots
from jobs.ledger.leasing import leases
from jobs.specs.inference import parse_spec
from jobs.specs.needs import Needs
from scheduler.client.http_client import ApiError
from tests.support.leased_job import LeasedJob
from tests.support.live_api import LiveApi, spec_document
from tests.support.rows import write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """An input of three rows."""
    return write_rows(tmp_path / "rows.jsonl", 3)


def test_a_submitted_job_answers_with_the_form_that_programs_read(api: LiveApi, rows: Path) -> None:
    answer = api.http.post("/v1/jobs", json=spec_document(rows, name="mine", priority="high"))
    assert answer.status_code == 201
    job = answer.json()
    assert set(job) == {
        "id", "object", "kind", "name", "state", "spec", "priority", "counts", "created_at", "started_at", "ended_at",
        "error", "metrics", "notices", "num_tokens", "retry_of", "attempt", "slots_held", "doing", "waiting_reason",
        "spec_is_cut", "stages", "ready_at", "parent_id", "child_index", "children", "forecast", "promise_at",
        "sweep", "trial_values", "pruned_step",
    }  # fmt: skip
    assert (job["object"], job["kind"], job["state"], job["name"]) == ("job", "inference", "validating", "mine")
    assert job["counts"] == {"total": 0, "done": 0, "failed": 0}
    assert job["priority"] == "high"
    assert isinstance(job["created_at"], float)
    assert job["error"] is job["started_at"] is job["ended_at"] is None
    assert api.client.job(job["id"]) == job


def test_a_job_says_which_jobs_or_which_time_it_waits_for(api: LiveApi, rows: Path) -> None:
    first = [api.client.submit(spec_document(rows))["id"] for _ in range(5)]
    second = api.client.submit(spec_document(rows, after=[f"job:{job_id}" for job_id in first]))
    named = ", ".join(f"{job_id} (validating)" for job_id in first[:3])
    assert second["waiting_reason"] == f"waits for the end of {named}, 2 more"
    assert second["ready_at"] is None
    later = api.client.submit(spec_document(rows, start_at="2090-01-31T07:00:00+01:00"))
    assert later["waiting_reason"] == "starts at 2090-01-31 06:00:00 UTC"
    api.client.cancel(first[0])
    ended = api.client.job(second["id"])
    assert (ended["state"], ended["waiting_reason"]) == ("cancelled", None)
    assert ended["error"] == {
        "code": "dependency_failed",
        "message": f"job {first[0]}, which this job comes after, is cancelled",
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("after", ["job:job_none"], "after 'job:job_none': there is no such job"),
        ("after", ["job_none"], "after.0.job: "),
        ("start_at", "2027-01-31T07:00:00", "start_at: must be a time with a time zone, such as"),
        ("start_at", "tomorrow", "start_at: must be a time with a time zone, such as"),
    ],
)
def test_what_a_job_cannot_wait_for_is_refused(
    api: LiveApi, rows: Path, field: str, value: object, message: str
) -> None:
    answer = api.http.post("/v1/jobs", json=spec_document(rows, **{field: value}))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)
    assert list(api.client.jobs()) == []


def test_a_spec_may_be_yaml(api: LiveApi, rows: Path) -> None:
    body = yaml.safe_dump(spec_document(rows))
    answer = api.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 201


def test_one_idempotency_key_makes_one_job(api: LiveApi, rows: Path) -> None:
    document = spec_document(rows)
    first = api.http.post("/v1/jobs", json=document, headers={"Idempotency-Key": "k-1"})
    rows.unlink()  # the input of the first submission may be gone
    again = api.http.post("/v1/jobs", json=document, headers={"Idempotency-Key": "k-1"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = api.http.post("/v1/jobs", json={**document, "name": "other"}, headers={"Idempotency-Key": "k-1"})
    assert other.status_code == 409
    assert other.headers["x-should-retry"] == "false"
    assert len(list(api.client.jobs())) == 1


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"task": "text-classificatoin"}, 400, "task"),
        ({"nonsense": 1}, 400, "nonsense"),
        ({"input": {"path": "/nowhere/rows.jsonl"}}, 400, "input.path"),
        ({"input": {"path": "/tmp"}}, 400, "input.path"),
        ({"input": {"path": "file:file_gone"}}, 400, "input.path"),
        ({"kind": "brewing"}, 400, "kind"),
        ({"model": "/nowhere/model"}, 400, "model"),
        ({"output": {"to": "jsonl", "path": "/nowhere/at/all/out.jsonl"}}, 400, "output.path"),
        ({"slots": {"max": 2**40}}, 400, "slots.max"),
        ({"time_limit": 10**18}, 400, "time_limit"),
        ({"time_limit": "9" * 400}, 400, "time_limit"),
        ({"batching": {"max_tokens": 2**62}}, 400, "batching.max_tokens"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    api: LiveApi, rows: Path, change: dict[str, Any], status: int, param: str
) -> None:
    answer = api.http.post("/v1/jobs", json=spec_document(rows, **change))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    assert list(api.client.jobs()) == []


def test_jobs_are_listed_newest_first_in_pages(api: LiveApi, rows: Path) -> None:
    ids = [api.client.submit(spec_document(rows, name=f"job {number}"))["id"] for number in range(5)]
    newest_first = ids[::-1]
    assert [job["id"] for job in api.client.jobs()] == newest_first
    first = api.client.jobs_page(limit=2)
    assert (first["object"], first["first_id"], first["last_id"], first["has_more"]) == (
        "list", newest_first[0], newest_first[1], True,
    )  # fmt: skip
    rest = api.client.jobs_page(limit=3, after=first["last_id"])
    assert [job["id"] for job in rest["data"]] == newest_first[2:]
    assert not rest["has_more"]
    empty = api.client.jobs_page(state="completed")
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    with pytest.raises(ApiError) as unknown:
        api.client.jobs_page(after="job_unknown")
    assert unknown.value.status == 404


def test_a_cancel_ends_a_job_once(api: LiveApi, rows: Path) -> None:
    job = api.client.submit(spec_document(rows))
    assert api.client.cancel(job["id"])["state"] == "cancelled"
    answer = api.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == "conflict"


def test_a_failed_job_has_a_reason_and_is_retried_as_a_new_one(api: LiveApi, rows: Path) -> None:
    job = api.client.submit(spec_document(rows))
    assert api.http.post(f"/v1/jobs/{job['id']}/retry").status_code == 409
    job_ledger.fail(api.database, job["id"], StokerError("the disk is on fire"))
    failed = api.client.job(job["id"])
    assert failed["error"] == {"code": "internal_error", "message": "the disk is on fire"}
    again = api.client.retry(job["id"])
    assert again["retry_of"] == job["id"]
    assert again["id"] != job["id"]
    assert again["spec"] == job["spec"]


def test_two_retries_of_a_job_are_one_job_until_it_ends(api: LiveApi, rows: Path) -> None:
    job = api.client.submit(spec_document(rows))
    api.client.cancel(job["id"])
    first, second = (api.http.post(f"/v1/jobs/{job['id']}/retry") for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert job_ledger.retry(api.database, job["id"]).id == first.json()["id"], "also of two requests at once"
    api.client.cancel(first.json()["id"])
    third = api.http.post(f"/v1/jobs/{job['id']}/retry")
    assert third.status_code == 201
    assert third.json()["id"] != first.json()["id"]


def test_what_waited_for_a_cancelled_training_is_not_retried(api: LiveApi, rows: Path) -> None:
    training = parse_spec(
        {
            "kind": "training", "task": "text-classification", "model": {"architecture": "bert"},
            "data": {"train": str(rows), "columns": {"label": "id"}},
        }
    )  # fmt: skip
    trained = job_ledger.submit(api.database, training)
    waiting = api.client.submit(spec_document(rows, model=f"job:{trained.id}"))
    job_ledger.cancel(api.database, trained.id)
    assert api.client.job(waiting["id"])["state"] == "cancelled"
    refused = api.http.post(f"/v1/jobs/{waiting['id']}/retry")
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == "model"
    assert error["message"] == f"model 'job:{trained.id}': that training is cancelled and has no model"
    with api.database.read() as session:
        assert job_ledger.live_retry(session, waiting["id"]) is None, "nothing was kept"


def test_a_waiting_job_has_a_reason(
    api: LiveApi, settings: Settings, sqlite_database: Database, tmp_path: Path
) -> None:
    first = LeasedJob(sqlite_database, settings, tmp_path, [{"id": "a", "text": "a"}])
    assert api.client.job(first.job_id)["waiting_reason"] == "no scheduler is running"
    from scheduler.control.leader import Leader

    leader = Leader(sqlite_database, leader_seconds=600)
    leader.acquire()
    assert api.client.job(first.job_id)["waiting_reason"] == "no slot is online"
    slots.register(sqlite_database, [slots.SlotInfo("unheard", "host", "cpu", None, "CPU", 0, 1)])
    with sqlite_database.write() as session:
        silent = session.get_one(Slot, "unheard")
        silent.state, silent.reason = SlotState.UNHEARD, "its doorbell is not answered"
    reason = "no slot is online: its doorbell is not answered"
    assert api.client.job(first.job_id)["waiting_reason"] == reason
    first.lease("slot-0")
    assert api.client.job(first.job_id)["slots_held"] == 1
    assert api.client.job(first.job_id)["waiting_reason"] is None
    with sqlite_database.write() as session:  # no worker answered, and the API finds no Redis
        lease = session.scalars(select(Lease)).one()
        lease.state, lease.granted_at = LeaseState.GRANTED, lease.granted_at - 60.0
    reason = "cannot notify its slots: Redis cannot be reached: "
    assert api.client.job(first.job_id)["waiting_reason"].startswith(reason)
    second = LeasedJob(sqlite_database, settings, tmp_path, [{"id": "a", "text": "a"}])
    assert api.client.job(second.job_id)["waiting_reason"] == "all slots are busy (1)"
    with sqlite_database.write() as session:
        session.get_one(Job, second.job_id).needs = Needs(labels=frozenset({"a100"})).stored()
    reason = "no slot that is online has what it needs: label a100"
    assert api.client.job(second.job_id)["waiting_reason"] == reason
    leader.resign()


def test_a_delayed_job_has_a_reason(
    api: LiveApi, settings: Settings, sqlite_database: Database, tmp_path: Path
) -> None:
    job = LeasedJob(sqlite_database, settings, tmp_path, [{"id": "a", "text": "a"}])
    patient = settings.model_copy(update={"retry_seconds": 1000.0, "retry_max_seconds": 1000.0})
    full = NotKept("the checkpoint of step 5 could not be stored: No space left on device")
    leases.crash(sqlite_database, job.lease("slot-0").lease_id, full, computing=None, retries=patient)
    for state in ("running", "queued"):
        seen = api.client.job(job.job_id)
        assert seen["state"] == state
        assert seen["waiting_reason"].startswith(f"{full.message}; retrying in ")
        overdue.requeue_idle(sqlite_database)


def test_slots_show_their_activity(api: LiveApi, settings: Settings, sqlite_database: Database, tmp_path: Path) -> None:
    job = LeasedJob(sqlite_database, settings, tmp_path, [{"id": "a", "text": "a"}])
    lease = job.lease("slot-0")
    slots.register(sqlite_database, [slots.SlotInfo("slot-1", "host", "cuda", "GPU-1", "H200", 2**37, 4, [], ["h200"])])
    busy, idle = api.client.slots()
    assert (busy["id"], busy["state"], busy["job_id"], busy["lease_id"]) == (
        "slot-0", "online", job.job_id, lease.lease_id,
    )  # fmt: skip
    assert (idle["id"], idle["state"], idle["device_uuid"], idle["job_id"]) == ("slot-1", "offline", "GPU-1", None)
    assert (idle["memory_bytes"], idle["labels"], busy["labels"]) == (2**37, ["h200"], [])
    assert (busy["activity"], idle["activity"]) == ("starting", None)
    doing = leases.RunnerActivity("loading the model", seconds=12.0)
    leases.renew(sqlite_database, lease.lease_id, lease_seconds=60.0, doing=doing)
    (busy, _), doing = api.client.slots(), api.client.job(job.job_id)["doing"]
    assert (busy["activity"], busy["activity_at"]) == ("loading the model", doing[0]["since"])
    assert doing == [{"slot_id": "slot-0", "activity": "loading the model", "since": busy["activity_at"]}]
    assert busy["heartbeat_at"] - busy["activity_at"] < 3600.0


def test_metrics_are_numbers_by_name(api: LiveApi, rows: Path) -> None:
    job = api.client.submit(spec_document(rows))
    metrics = api.client.metrics(job["id"])
    assert all(set(metric) == {"step", "name", "value"} for metric in metrics)
    assert {metric["name"] for metric in metrics} >= {"rows_done", "rows_failed", "num_tokens"}


def test_artifacts_are_listed_and_read_whole(api: LiveApi, rows: Path, tmp_path: Path) -> None:
    job_id = api.client.submit(spec_document(rows))["id"]
    content = bytes(range(256)) * 10_000
    name = "folder/results.bin"
    stored = api.store.put(artifact_key(job_id, name), [content])
    with api.database.write() as session:
        session.add(
            Artifact(
                job_id=job_id,
                name=name,
                key=stored.key,
                num_bytes=stored.num_bytes,
                sha256=stored.sha256,
                created_at=1.0,
            )
        )
    (listed,) = api.client.artifacts(job_id)
    assert (listed["name"], listed["bytes"], listed["sha256"]) == (name, len(content), stored.sha256)
    assert api.client.download_artifact(job_id, name, tmp_path / "out") == len(content)
    assert (tmp_path / "out").read_bytes() == content
    for missing in ("nothing", "../../../etc/passwd", "/etc/passwd", "folder"):
        with pytest.raises(ApiError) as refused:
            api.client.download_artifact(job_id, missing, tmp_path / "none")
        assert refused.value.status == 404, missing
    assert not (tmp_path / "none").exists()


def test_the_states_in_an_answer_are_the_states_of_the_design(api: LiveApi) -> None:
    document = api.http.get("/openapi.json").json()
    assert document["components"]["schemas"]["JobState"]["enum"] == [state.value for state in JobState]
    assert json.dumps(document)
