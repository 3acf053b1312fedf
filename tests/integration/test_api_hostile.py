"""Hostile requests: each is refused with an error of the usual form that reveals nothing, and the API lives on."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scheduler.api.bodies.request_body import MAX_DOCUMENT_BYTES
from scheduler.api.routes import jobs as job_routes
from tests.support.live_api import LiveApi, fresh_api, spec_document


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """One running API for all of these."""
    with fresh_api(tmp_path_factory.mktemp("hostile")) as running:
        yield running


@pytest.fixture
def api(shared: LiveApi) -> Iterator[LiveApi]:
    """A running API that must still be well, and empty, at the end of each test."""
    yield shared
    assert shared.client.health()["database"] == "ok"
    assert list(shared.client.jobs()) == []


def check_error(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The one error of an answer that has the one shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    for inside in ("Traceback", "sqlalchemy", "site-packages", ".py"):
        assert inside not in answer.text
    return dict(body["error"])


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'"text"', "application/json"),
        (b"null", "application/json"),
        (b'{"task": NaN}', "application/json"),
        (b'{"task": "\xff"}', "application/json"),
        (b'{"task": "\\ud800"}', "application/json"),
        (b'{"name": "a\\u0000b"}', "application/json"),
        (b'{"a\\u0000b": 1}', "application/json"),
        (b'{"slots": {"max": 1e400}}', "application/json"),
        (b'{"slots": {"max": ' + b"9" * 5000 + b"}}", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "application/json"),
        (b'{"kind": ["inference"]}', "application/json"),
        (b'{"kind": {"a": 1}}', "application/json"),
        (b'{"input": {"path": []}, "task": "fill-mask", "model": "a/b"}', "application/json"),
        (b"a: &a [x]\nb: *a\n", "application/yaml"),
        (b"a: 1\na: 2\n", "application/yaml"),
        (b"? [a, b]\n: 1\n", "application/yaml"),
        (b"1: 2\n", "application/yaml"),
        (b"name: 2024-01-01\n", "application/yaml"),
        (b"name: .nan\n", "application/yaml"),
        (b"name: !!python/object/apply:os.system [ls]\n", "application/yaml"),
        (b"name: !!binary aGFsbG8=\n", "application/yaml"),
        (b"name: !!set {a, b}\n", "application/yaml"),
        (b'name: "\\ud800"\n', "application/yaml"),
        (b"name: \x00\n", "application/yaml"),
        (b"\xff\xfe\xfd", "application/yaml"),
        (b"a: [1, 2\n", "application/yaml"),
        (b"[" * 20_000, "application/yaml"),
        (b"--- a\n--- b\n", "application/yaml"),
        (b"x: " + b"9" * 5000, "application/yaml"),
        (b"", "application/yaml"),
    ],
)
def test_a_body_that_is_no_spec(api: LiveApi, body: bytes, content_type: str) -> None:
    error = check_error(api.http.post("/v1/jobs", content=body, headers={"Content-Type": content_type}), 400)
    assert error["code"] == "invalid_spec"
    assert error["type"] == "invalid_request_error"


def test_a_few_lines_of_yaml_cannot_become_billions_of_values(api: LiveApi) -> None:
    names = "abcdefghijkl"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{names[at]}'] * 10)}]" for at, name in enumerate(names[1:])]
    check_error(api.http.post("/v1/jobs", content="\n".join(lines), headers={"Content-Type": "application/yaml"}), 400)


def test_a_yaml_body_is_bounded_more_tightly(api: LiveApi) -> None:
    body = "a:\n" + "- [1, 2, 3]\n" * 30_000
    check_error(api.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/yaml"}), 413)


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_100_megabytes_is_refused_and_not_held(api: LiveApi, declared: bool) -> None:
    num_bytes = 100 * 2**20

    def blocks() -> Iterator[bytes]:
        for _ in range(num_bytes // 2**16):
            yield bytes(2**16)

    headers = {"Content-Length": str(num_bytes)} if declared else {}
    tracemalloc.start()
    answer = api.http.post("/v1/jobs", content=blocks(), headers=headers)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    check_error(answer, 413)
    assert peak < 5 * MAX_DOCUMENT_BYTES


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/../../etc/passwd",
        "/v1/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v1/jobs/..%00",
        "/v1/jobs/a%00b",
        "/v1/jobs/%ff%fe",
        "/v1/jobs/" + "x" * 5000,
        "/v1/jobs/'; DROP TABLE jobs; --",
        "/v1/jobs/%E4%B8%AD",
        "/v1/jobs/job_x%0a",
        "/v1/files/..%2f..%2fstoker.db/content",
        "/v1/files/%00/content",
        "/v1/jobs/job_1/artifacts/..%2f..%2fstoker.db",
        "/v1/jobs/job_1/artifacts/a%00b",
        "/v1/jobs/job_1/artifacts/" + "x" * 5000,
        "/v1/jobs//events",
        "/v1",
        "/",
        "//v1/jobs",
        "/v1/jobs/",
        "/docs",
    ],
)
def test_a_path_that_leads_nowhere(api: LiveApi, path: str) -> None:
    answer = api.send_raw(
        f"GET {path.replace(' ', '%20')} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n"
        "Connection: close\r\n\r\n"
    )
    status = int(answer.split(b" ", 2)[1])
    assert status in {400, 404}, answer
    assert b"root:" not in answer
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=-1", "limit=101", "limit=999999999999999999999999", "limit=1e3", "limit=", "limit=%00",
        "after=%00", "after=..%2f", "after=" + "x" * 1000, "state=brewing", "state=%00", "limit=%ff",
    ],
)  # fmt: skip
def test_a_query_that_makes_no_sense_is_named(api: LiveApi, query: str) -> None:
    error = check_error(api.http.get(f"/v1/jobs?{query}"), 400)
    assert error["param"] == query.partition("=")[0]


@pytest.mark.parametrize("query", ["after_row=-2", "after_row=99999999999999999999", "limit=0", "format=%00"])
def test_a_query_of_results_that_makes_no_sense_is_named(api: LiveApi, query: str) -> None:
    error = check_error(api.http.get(f"/v1/jobs/job_x/results?{query}"), 400)
    assert error["param"] == query.partition("=")[0]


@pytest.mark.parametrize(
    "header",
    [
        b"Authorization: Bearer \xff\xfe",
        b"Authorization: Bearer",
        b"Authorization: Bearer ",
        b"Authorization: Basic dXNlcjpwYXNz",
        b"Authorization: " + b"x" * 10_000,
        b"authorization: bearer sk-stoker-wrong",
        b"X-Api-Key: anything",
    ],
)
def test_a_key_that_is_none(api: LiveApi, header: bytes) -> None:
    answer = api.send_raw(b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + header + b"\r\n\r\n")
    assert answer.split(b" ", 2)[1] == b"401", answer
    assert b"www-authenticate: Bearer" in answer
    assert b'"authentication_error"' in answer


@pytest.mark.parametrize("value", [b"\xff\xfe", b"a b", b"x" * 201, b"", b"\xc3\xa4"])
def test_an_idempotency_key_that_is_none(api: LiveApi, value: bytes, tmp_path: Path) -> None:
    body = json.dumps(spec_document(tmp_path)).encode()
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {api.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    answer = api.send_raw(head.encode() + b"Idempotency-Key: " + value + b"\r\n\r\n", body)
    assert answer.split(b" ", 2)[1] == b"400", answer
    assert b"idempotency-key" in answer.lower()


@pytest.mark.parametrize("raw", [b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_not_http(api: LiveApi, raw: bytes) -> None:
    api.send_raw(raw + b"GET / HTTP/1.0\r\n\r\n")
    assert api.http.get("/healthz").status_code == 200, "it goes on serving"


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/jobs"), ("DELETE", "/v1/jobs/x"), ("PATCH", "/healthz")])
def test_a_method_that_is_not_possible(api: LiveApi, method: str, path: str) -> None:
    assert check_error(api.http.request(method, path), 405)["code"] == "method_not_allowed"


def test_an_internal_error_reveals_nothing_and_is_logged_with_its_number(
    api: LiveApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("postgresql://user:secret@db/stoker")

    monkeypatch.setattr(job_routes.job_ledger, "list_jobs", fail)
    answer = api.http.get("/v1/jobs")
    error = check_error(answer, 500)
    assert "secret" not in answer.text
    assert error["type"] == "server_error"
    assert answer.headers["x-request-id"] in error["message"]
    assert answer.headers["x-request-id"] in caplog.text
    assert "RuntimeError" in caplog.text
    monkeypatch.undo()


def test_each_answer_has_a_request_id_of_its_own(api: LiveApi) -> None:
    answers = [api.http.get(path) for path in ("/v1/jobs", "/healthz", "/metrics", "/openapi.json", "/nowhere")]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
