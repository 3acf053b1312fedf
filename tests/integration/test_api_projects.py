"""Projects over HTTP: at every route a project's things do not exist for another one, and the operator sees all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.config.settings import Settings
from jobs.data.store_keys import artifact_key
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Artifact, Job
from jobs.errors import StokerError
from jobs.ledger import jobs as job_ledger
from jobs.ledger import slots
from jobs.ledger.groups import batches
from jobs.ledger.groups.batches import BatchPlan
from jobs.ledger.records import webhooks
from jobs.specs.inference import parse_spec
from scheduler.control.planning.planner import plan_job
from tests.support.leased_job import LeasedJob
from tests.support.live_api import LiveApi, spec_document
from tests.support.rows import write_rows

_LINE = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}


@dataclass(frozen=True)
class ProjectData:
    """One project's client, and a job, files and batches that are its own."""

    http: httpx.Client
    job_id: str
    file_id: str
    batch_id: str
    growing_id: str
    """The output file of its batch, which still runs."""
    webhook_id: str
    cron_id: str


def upload(http: httpx.Client, content: bytes, *, purpose: str) -> str:
    """The id of a new upload."""
    answer = http.post("/v1/files", data={"purpose": purpose}, files={"file": ("rows.jsonl", content)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def fill_project(api: LiveApi, project: str) -> ProjectData:
    """A project that has one of everything."""
    http = api.client_of(project)
    file_id = upload(http, b'{"id": "a", "text": "a"}\n', purpose="input")
    job = http.post("/v1/jobs", json=spec_document(f"file:{file_id}"))
    assert job.status_code == 201, job.text
    job_id = job.json()["id"]
    stored = api.store.put(artifact_key(job_id, "made.bin"), [b"bytes"])
    with api.database.write() as session:
        artifact = Artifact(
            job_id=job_id, name="made.bin", key=stored.key, num_bytes=5, sha256=stored.sha256, created_at=1.0
        )
        session.add(artifact)
    request = {
        "input_file_id": upload(http, json.dumps(_LINE).encode(), purpose="batch"),
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }
    batch_id = http.post("/v1/batches", json=request).json()["id"]
    batches.accept(api.database, batch_id, BatchPlan(1, "m", []))
    growing_id = http.get(f"/v1/batches/{batch_id}").json()["output_file_id"]
    webhook_id = webhooks.create(api.database, "https://example.com/", events=[], project=project).id
    daily = {"name": "daily", "schedule": "0 7 * * *", "spec": spec_document(f"file:{file_id}")}
    cron = http.post("/v1/crons", json=daily)
    assert cron.status_code == 201, cron.text
    return ProjectData(http, job_id, file_id, batch_id, growing_id, webhook_id, cron.json()["id"])


def routes_of_one(api: LiveApi, project: ProjectData) -> Iterator[tuple[str, str, int]]:
    """Every route that names one thing by its id: the method, the path with the side's own ids, the good status."""
    ids = {
        "job_id": [project.job_id],
        "batch_id": [project.batch_id],
        "file_id": [project.file_id, project.growing_id],
        "webhook_id": [project.webhook_id],
        "cron_id": [project.cron_id],
    }
    for path, operations in api.http.get("/openapi.json").json()["paths"].items():
        named = re.findall(r"\{(\w+_id)\}", path)
        for method, operation in operations.items():
            good = next(int(status) for status in operation["responses"] if status.startswith("2"))
            for name in named:
                for value in ids[name]:
                    query = "?follow=false" if path.endswith(("/events", "/logs")) else ""
                    filled = path.replace(f"{{{name}}}", value).replace("{name}", "made.bin")
                    yield method.upper(), filled + query, good


def test_no_route_lets_one_project_at_the_things_of_another(api: LiveApi) -> None:
    """The routes come from the API's document, so a new one is tried as well."""
    mine, theirs = fill_project(api, "mine"), fill_project(api, "theirs")
    seen = list(routes_of_one(api, theirs))
    assert len(seen) >= 15
    for method, path, _ in seen:
        answer = mine.http.request(method, path)
        assert answer.status_code == 404, (method, path, answer.text)
        unknown = re.sub(r"(job|file|batch|webhook|cron)_\w+", r"\1_nothing", path.removesuffix("?follow=false"))
        message = answer.json()["error"]["message"]
        there_is_none = mine.http.request(method, unknown).json()["error"]["message"]
        assert re.sub(r"_[0-9a-z]+'", "_nothing'", message) == there_is_none, (
            "the answer does not even reveal that it exists"
        )
    for project in (mine, theirs):
        assert project.http.get(f"/v1/jobs/{project.job_id}").json()["state"] == "validating", "nothing was changed"
        assert project.http.get(f"/v1/batches/{project.batch_id}").json()["status"] == "in_progress"
        assert project.http.get(f"/v1/files/{project.file_id}").status_code == 200


def test_its_own_project_and_the_operator_reach_all_of_them(api: LiveApi) -> None:
    mine = fill_project(api, "mine")
    for http in (mine.http, api.http):
        for method, path, good in routes_of_one(api, mine):
            if method == "GET":
                assert http.request(method, path).status_code == good, (method, path)
    answer = api.http.post(f"/v1/jobs/{mine.job_id}/cancel")
    assert answer.json()["state"] == "cancelled"
    again = api.http.post(f"/v1/jobs/{mine.job_id}/retry").json()
    assert mine.http.get(f"/v1/jobs/{again['id']}").status_code == 200, "it stays the project's own"
    assert api.http.post(f"/v1/batches/{mine.batch_id}/cancel").status_code == 200


@pytest.mark.parametrize("kind", ["jobs", "files", "batches", "webhooks", "crons"])
def test_lists_show_a_project_its_own_and_the_operator_all(api: LiveApi, kind: str) -> None:
    mine, theirs = fill_project(api, "mine"), fill_project(api, "theirs")

    def ids(http: httpx.Client, **query: str) -> set[str]:
        answer = http.get(f"/v1/{kind}", params=query)
        return {entry["id"] for entry in answer.json().get("data", [])}

    assert ids(mine.http)
    assert not ids(mine.http) & ids(theirs.http)
    assert ids(api.http) == ids(mine.http) | ids(theirs.http)
    other = ids(theirs.http).pop()
    assert mine.http.get(f"/v1/{kind}", params={"after": other}).status_code == 404


def test_an_input_of_another_project_is_not_there(api: LiveApi, settings: Settings) -> None:
    mine, theirs = fill_project(api, "mine"), fill_project(api, "theirs")
    refused = mine.http.post("/v1/jobs", json=spec_document(f"file:{theirs.file_id}"))
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == f"input.path: there is no uploaded file '{theirs.file_id}'"
    request = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = mine.http.post("/v1/batches", json={**request, "input_file_id": theirs.file_id})
    assert (batch.status_code, batch.json()["error"]["param"]) == (404, "input_file_id")
    own = upload(mine.http, json.dumps(_LINE).encode(), purpose="batch")
    retry = mine.http.post("/v1/batches", json={**request, "input_file_id": own, "retry_of": theirs.batch_id})
    assert retry.status_code == 404
    assert api.http.post("/v1/jobs", json=spec_document(f"file:{theirs.file_id}")).status_code == 201


def test_a_plan_reads_with_its_jobs_own_eyes(api: LiveApi, settings: Settings) -> None:
    """A job that did not come through the API may read no more than its project either."""
    mine, theirs = fill_project(api, "mine"), fill_project(api, "theirs")
    with api.database.read() as session:
        spec = job_ledger.get(session, theirs.job_id).spec
    job = job_ledger.submit(api.database, parse_spec(spec), project="mine")
    for job_id in (job.id, theirs.job_id):
        plan_job(api.database, api.store, settings, job_id)
    assert mine.http.get(f"/v1/jobs/{job.id}").json()["error"]["code"] == "invalid_input"
    assert theirs.http.get(f"/v1/jobs/{theirs.job_id}").json()["state"] == JobState.QUEUED


def test_projects_may_choose_the_same_idempotency_key(api: LiveApi, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 1)
    ids = set()
    for http in (api.client_of("mine"), api.client_of("theirs"), api.http):
        made, again = (
            http.post("/v1/jobs", json=spec_document(rows), headers={"Idempotency-Key": "nightly"}) for _ in range(2)
        )
        assert (made.status_code, again.status_code) == (201, 200)
        assert made.json()["id"] == again.json()["id"]
        ids.add(made.json()["id"])
    assert len(ids) == 3


def test_a_slot_does_not_show_the_jobs_of_other_projects(
    api: LiveApi, settings: Settings, sqlite_database: Database, tmp_path: Path
) -> None:
    job = LeasedJob(sqlite_database, settings, tmp_path, [{"id": "a", "text": "a"}])
    lease = job.lease("slot-0")
    (mine,) = api.client_of("mine").get("/v1/slots").json()["data"]
    (operators,) = api.client.slots()
    assert (mine["job_id"], mine["lease_id"]) == (None, lease.lease_id)
    assert operators["job_id"] == job.job_id


def test_a_slot_shows_only_models_that_the_projects_own_jobs_use(
    api: LiveApi, settings: Settings, sqlite_database: Database, tmp_path: Path
) -> None:
    job = LeasedJob(sqlite_database, settings, tmp_path, [{"id": "a", "text": "a"}])
    job.lease("slot-0")
    mine = api.client_of("mine")
    own = mine.post("/v1/jobs", json=spec_document(job.input)).json()["id"]
    with sqlite_database.read() as session:
        shared = job_ledger.get(session, own).model_key
    secret = "embeddings|/home/theirs/model|auto"
    slots.beat(sqlite_database, "slot-0", "slot-0-1", [secret, "fill-mask|job:job_theirs|auto", shared])
    assert [slot["warm_models"] for slot in mine.get("/v1/slots").json()["data"]] == [[shared]]
    assert api.client_of("third").get("/v1/slots").json()["data"][0]["warm_models"] == []
    assert secret in api.client.slots()[0]["warm_models"], "the operator sees all"


def test_a_model_or_processor_of_another_project_is_not_there(api: LiveApi, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 2)
    training = {
        "kind": "training",
        "task": "text-classification",
        "model": {"architecture": "bert"},
        "data": {"train": str(rows), "columns": {"label": "id"}},
    }
    theirs = job_ledger.submit(api.database, parse_spec(training), project="theirs")
    with api.database.write() as session:
        session.get_one(Job, theirs.id).state = JobState.COMPLETED
    name = f"job:{theirs.id}"
    with_processor = {**training, "model": {"architecture": "bert", "processor": name}}
    for document, param in (
        (spec_document(rows, model=name), "model"),
        ({**training, "model": name}, "model"),
        (with_processor, "model.processor"),
    ):
        refused = api.client_of("mine").post("/v1/jobs", json=document)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert refused.json()["error"]["message"] == f"{param} '{name}': there is no such job"
        assert api.client_of("theirs").post("/v1/jobs", json=document).status_code == 201


def test_a_failed_jobs_error_stays_in_its_project(api: LiveApi) -> None:
    mine, theirs = fill_project(api, "mine"), fill_project(api, "theirs")
    job_ledger.fail(api.database, theirs.job_id, StokerError("a secret"))
    answers: list[Any] = [mine.http.get(f"/v1/jobs/{theirs.job_id}/{part}") for part in ("events", "logs", "results")]
    assert [answer.status_code for answer in answers] == [404] * 3
    assert all("a secret" not in answer.text for answer in answers)
