"""The routes of webhooks: checks at creation, separation of projects, and a secret that is shown once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlmodel import select

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.tables import Webhook
from jobs.errors import MachineError
from jobs.ledger import jobs as job_ledger
from jobs.ledger.records import webhooks
from jobs.ledger.records.webhooks import EVENT_TYPES
from jobs.retries import RetryPolicy
from jobs.specs.inference import parse_spec
from scheduler.admin.keys import create_key
from tests.support.live_api import LiveApi, live_api, spec_document

URL = "http://127.0.0.1:9/hook"


@pytest.fixture
def api(settings: Settings, sqlite_database: Database) -> Iterator[LiveApi]:
    """A running API whose operator allows one private address."""
    with live_api(settings.model_copy(update={"webhook_private_hosts": ["127.0.0.1"]}), sqlite_database) as running:
        yield running


def make(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    """A webhook."""
    answer = http.post("/v1/webhooks", json={"url": URL, **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def end_a_job(api: LiveApi, project: str = "default") -> str:
    """The id of a job whose end is an event."""
    job_id = job_ledger.submit(api.database, parse_spec(spec_document("rows.jsonl")), project=project).id
    job_ledger.cancel(api.database, job_id)
    return job_id


def test_the_secret_is_shown_once(api: LiveApi) -> None:
    made = make(api.http, events=["batch.completed"])
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made == {
        "id": made["id"], "object": "webhook", "url": URL, "events": ["batch.completed"], "project": "default",
        "created_at": made["created_at"],
    }  # fmt: skip
    end_a_job(api)
    api.http.post(f"/v1/webhooks/{made['id']}/test")
    assert api.http.get(f"/v1/webhooks/{made['id']}").json() == made
    assert api.http.get("/v1/webhooks").json()["data"] == [made]
    for path in ("", f"/{made['id']}", f"/{made['id']}/deliveries"):
        assert secret not in api.http.get(f"/v1/webhooks{path}").text


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({}, "url"),
        ({"url": 7}, "url"),
        ({"url": ""}, "url"),
        ({"url": "http://127.0.0.2/"}, "url"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "url"),
        ({"url": "http://[::ffff:127.0.0.1]/"}, "url"),
        ({"url": "https://user:password@127.0.0.1/"}, "url"),
        ({"url": "gopher://127.0.0.1/"}, "url"),
        ({"url": f"{URL}/{'x' * 2000}"}, "url"),
        ({"url": URL, "events": "batch.completed"}, "events"),
        ({"url": URL, "events": ["batch.done"]}, "events"),
        ({"url": URL, "events": ["webhook.test"]}, "events"),
        ({"url": URL, "events": [7]}, "events.0"),
        ({"url": URL, "secret": "whsec_mine"}, "secret"),
    ],
)
def test_a_wrong_webhook_is_refused_by_its_field_and_not_made(
    api: LiveApi, document: dict[str, Any], param: str
) -> None:
    answer = api.http.post("/v1/webhooks", json=document)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error["message"].startswith(f"{param}: ")
    with api.database.read() as session:
        assert session.exec(select(Webhook)).all() == []


def test_a_deletion_is_a_deletion(api: LiveApi) -> None:
    made = make(api.http)
    end_a_job(api)
    path = f"/v1/webhooks/{made['id']}"
    assert api.http.delete(path).json() == {"id": made["id"], "object": "webhook", "deleted": True}
    for answer in (
        api.http.get(path),
        api.http.delete(path),
        api.http.get(f"{path}/deliveries"),
        api.http.post(f"{path}/test"),
        api.http.get("/v1/webhooks", params={"after": made["id"]}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert api.http.get("/v1/webhooks").json()["data"] == []


def test_the_log_shows_each_delivery_and_its_result(api: LiveApi) -> None:
    made = make(api.http)
    jobs = [end_a_job(api) for _ in range(3)]
    path = f"/v1/webhooks/{made['id']}/deliveries"
    first = webhooks.claim(api.database, made["id"], max_attempts=3, claim_seconds=30)
    second = webhooks.claim(api.database, made["id"], max_attempts=3, claim_seconds=30)
    assert first is not None
    assert second is not None
    webhooks.record_delivered(api.database, first, 204)
    error = MachineError("answered 500")
    webhooks.record_failed(api.database, second, error, RetryPolicy(1, 1.0, 1.0), status_code=500)
    page = api.http.get(path).json()
    assert page["has_more"] is False
    assert [entry["event"]["data"]["id"] for entry in page["data"]] == jobs[::-1]
    waiting, failed, delivered = page["data"]
    assert waiting == {
        "id": waiting["id"], "object": "webhook_delivery", "webhook_id": made["id"], "type": "job.cancelled",
        "event": waiting["event"], "state": "pending", "attempts": 0, "status_code": None, "error": None,
        "created_at": waiting["created_at"], "next_attempt_at": waiting["created_at"], "ended_at": None,
    }  # fmt: skip
    assert json.loads(first.body) == delivered["event"]
    assert (delivered["id"], delivered["state"]) == (first.delivery_id, "delivered")
    assert (delivered["attempts"], delivered["status_code"], delivered["next_attempt_at"]) == (1, 204, None)
    assert (failed["state"], failed["status_code"]) == ("failed", 500)
    assert failed["error"] == "answered 500 (tried 1 times)"
    assert failed["ended_at"] >= failed["created_at"]
    one = api.http.get(path, params={"limit": 1}).json()
    assert one["has_more"] is True
    rest = api.http.get(path, params={"after": one["last_id"]}).json()
    assert [*one["data"], *rest["data"]] == page["data"]
    assert list(api.client.deliveries(made["id"])) == page["data"]


def test_a_test_event_is_sent_to_order(api: LiveApi) -> None:
    made = make(api.http, events=["batch.failed"])
    answer = api.http.post(f"/v1/webhooks/{made['id']}/test")
    assert answer.status_code == 201
    assert answer.json()["event"]["type"] == "webhook.test"
    assert [entry["id"] for entry in api.client.deliveries(made["id"])] == [answer.json()["id"]]


def test_a_key_sees_the_webhooks_of_its_project_and_the_operators_sees_all(api: LiveApi) -> None:

    def client_of(project: str) -> httpx.Client:
        key = create_key(api.database, "test", project=project).secret
        return httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}, timeout=300, trust_env=False)

    with client_of("a") as a, client_of("b") as b:
        of_a, of_b, of_all = make(a), make(b), make(api.http)
        assert [webhook["project"] for webhook in (of_a, of_b, of_all)] == ["a", "b", "default"]
        job_id = end_a_job(api, project="a")
        assert [webhook["id"] for webhook in a.get("/v1/webhooks").json()["data"]] == [of_a["id"]]
        assert len(api.http.get("/v1/webhooks").json()["data"]) == 3
        path = f"/v1/webhooks/{of_a['id']}"
        for answer in (
            b.get(path),
            b.delete(path),
            b.get(f"{path}/deliveries"),
            b.post(f"{path}/test"),
            b.get("/v1/webhooks", params={"after": of_a["id"]}),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert [entry["event"]["data"]["id"] for entry in a.get(f"{path}/deliveries").json()["data"]] == [job_id]
        for other, http in ((of_b, b), (of_all, api.http)):
            assert http.get(f"/v1/webhooks/{other['id']}/deliveries").json()["data"] == []
        assert api.http.get(path).status_code == 200
        assert api.http.delete(path).status_code == 200


def test_without_a_key_nothing_is_shown(api: LiveApi) -> None:
    with httpx.Client(base_url=api.url, timeout=300, trust_env=False) as nobody:
        for method, path in (("GET", ""), ("POST", ""), ("GET", "/x"), ("DELETE", "/x"), ("GET", "/x/deliveries")):
            assert nobody.request(method, f"/v1/webhooks{path}").status_code == 401


def test_the_document_names_the_events(api: LiveApi) -> None:
    schemas = api.http.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["WebhookRequest"]["properties"]["events"]["items"]["enum"] == list(EVENT_TYPES)
