"""What HTTP's own forms promise: HEAD, the methods of a 405, ranges, hosts; and lists that stay small."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jobs.data.store_keys import artifact_key
from jobs.db.tables import Artifact, Batch
from jobs.ledger import jobs as job_ledger
from jobs.ledger.groups import batches
from jobs.ledger.groups.batches import NewBatch
from jobs.ledger.records import pages
from jobs.specs.inference import parse_spec
from scheduler.admin.keys import create_key, list_keys, revoke_key
from scheduler.api.views import lists
from tests.conftest import wait_until
from tests.support.live_api import LiveApi, fresh_api, spec_document
from tests.support.rows import write_rows

CONTENT = bytes(range(256)) * 10


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """A running API."""
    with fresh_api(tmp_path_factory.mktemp("forms")) as running:
        yield running


@pytest.fixture(scope="module")
def file_path(api: LiveApi) -> str:
    """Where an uploaded file's bytes are."""
    files = {"file": ("a.bin", CONTENT)}
    file_id = api.http.post("/v1/files", data={"purpose": "input"}, files=files).json()["id"]
    return f"/v1/files/{file_id}/content"


@pytest.fixture(scope="module")
def job_id(api: LiveApi, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A queued job with an artifact."""
    rows = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 2)
    job = job_ledger.submit(api.database, parse_spec(spec_document(rows)), project="default")
    stored = api.store.put(artifact_key(job.id, "made.bin"), [CONTENT])
    with api.database.write() as session:
        session.add(
            Artifact(
                job_id=job.id, name="made.bin", key=stored.key, num_bytes=stored.num_bytes, sha256=stored.sha256,
                created_at=1.0,
            )
        )  # fmt: skip
    return job.id


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/v1/jobs", "PUT", "GET, HEAD, POST"),
        ("/v1/files/file_a", "POST", "DELETE, GET, HEAD"),
        ("/v1/jobs/job_a/cancel", "GET", "POST"),
        ("/v1/jobs/job_a/cancel", "HEAD", "POST"),
        ("/healthz", "PATCH", "GET, HEAD"),
        ("/openapi.json", "DELETE", "GET, HEAD"),
    ],
)
def test_a_405_names_all_methods(api: LiveApi, path: str, method: str, allowed: str) -> None:
    answer = api.http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_head_works_wherever_get_does(api: LiveApi, file_path: str, job_id: str) -> None:
    job = f"/v1/jobs/{job_id}"
    for path in (
        "/healthz", "/metrics", "/v1/jobs", job, f"{job}/results", f"{job}/artifacts/made.bin", file_path, "/v1/models",
        f"{job}/events", "/openapi.json",
    ):  # fmt: skip
        answer = api.http.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert api.http.head(file_path).headers["content-length"] == str(len(CONTENT))
    assert api.http.head("/v1/jobs/job_nowhere").status_code == 404
    assert api.http.get("/healthz").status_code == 200, "the connection goes on"


@pytest.mark.parametrize(
    ("wanted", "status", "start", "stop"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=10-", 206, 10, len(CONTENT)),
        ("bytes=-5", 206, len(CONTENT) - 5, len(CONTENT)),
        ("bytes=2550-9999999", 206, 2550, len(CONTENT)),
        ("bytes=0-", 200, 0, len(CONTENT)),
        ("bytes=-99999", 200, 0, len(CONTENT)),
        ("bytes=5-2", 200, 0, len(CONTENT)),
        ("bytes=0-1,4-5", 200, 0, len(CONTENT)),
        ("rows=0-1", 200, 0, len(CONTENT)),
        ("bytes=" + "9" * 5000 + "-", 200, 0, len(CONTENT)),
        (f"bytes={len(CONTENT)}-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_ranges_of_files_and_artifacts(
    api: LiveApi, file_path: str, job_id: str, wanted: str, status: int, start: int, stop: int
) -> None:
    for path in (file_path, f"/v1/jobs/{job_id}/artifacts/made.bin"):
        answer = api.http.get(path, headers={"Range": wanted})
        assert answer.status_code == status
        assert answer.headers["accept-ranges"] == "bytes"
        if status == 416:
            assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"
            continue
        assert answer.content == CONTENT[start:stop]
        assert (status == 206) == ("content-range" in answer.headers)
        if status == 206:
            assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"


def test_a_range_of_another_version_is_answered_with_the_whole(api: LiveApi, file_path: str) -> None:
    etag = api.http.get(file_path).headers["etag"]
    for given, status in ((etag, 206), ('"other"', 200)):
        assert api.http.get(file_path, headers={"Range": "bytes=0-1", "If-Range": given}).status_code == status


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_requests_for_other_host_names_are_refused_without_key(api: LiveApi, path: str) -> None:
    """A web page whose host name resolves to this machine would otherwise have the origin of this API in a browser."""
    with httpx.Client(base_url=api.url, timeout=300, trust_env=False) as client:
        for host in ("127.0.0.1:1", "[::1]:8470", "localhost", "localhost:80", "a.localhost", "10.1.2.3"):
            assert client.get(path, headers={"Host": host}).status_code == 200, host
        for host in (
            "evil.example",
            "evil.example:8470",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "[",
            "a b",
        ):
            answer = client.get(path, headers={"Host": host})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), host
        named = {"Host": "stoker.example"}
        assert client.get(path, headers={**named, "Authorization": f"Bearer {api.key}"}).status_code == 200
        assert client.get(path, headers={**named, "Authorization": "Bearer sk-stoker-no"}).status_code == 401


def test_streams_end_when_their_key_is_revoked(api: LiveApi, job_id: str) -> None:
    secret = create_key(api.database, "short-lived").secret
    key = next(key for key in list_keys(api.database) if key.name == "short-lived")
    with (
        httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {secret}"}, timeout=60) as client,
        client.stream("GET", f"/v1/jobs/{job_id}/events?progress=true") as events,
        client.stream("GET", f"/v1/jobs/{job_id}/logs?follow=true") as logs,
    ):
        blocks = events.iter_raw()
        assert next(blocks)
        revoke_key(api.database, key.id)
        assert b"event: end" not in b"".join(blocks)
        assert b"event: end" not in b"".join(logs.iter_raw())
        wait_until(lambda: client.get("/v1/jobs").status_code == 401, "the key opens nothing")


def test_lists_leave_out_large_fields_and_one_job_has_them(api: LiveApi, tmp_path: Path) -> None:
    large = {"targets": ["word"] * 20_000}
    rows = str(write_rows(tmp_path / "rows.jsonl", 1))
    document = spec_document([rows] * 200, parameters=large)
    document["input"]["path"] = [rows] * 200
    job = job_ledger.submit(api.database, parse_spec(document), project="search")
    search = api.client_of("search")
    (entry,) = search.get("/v1/jobs").json()["data"]
    assert entry["spec_is_cut"]
    assert "parameters" not in entry["spec"] or not entry["spec"]["parameters"]
    assert entry["spec"]["task"] == "fill-mask"
    assert entry["spec"]["input"]["key"] == "id"
    assert len(json.dumps(entry)) < 5000
    whole = search.get(f"/v1/jobs/{job.id}").json()
    assert not whole["spec_is_cut"]
    assert whole["spec"]["parameters"] == large
    assert len(whole["spec"]["input"]["path"]) == 200
    small = api.http.get("/v1/jobs?limit=100").json()["data"]
    assert any(not one["spec_is_cut"] and one["spec"]["input"]["path"] for one in small)


def test_a_page_of_large_jobs_is_shorter_and_the_next_goes_on(
    api: LiveApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", 1))
    document = spec_document(rows, parameters={"targets": ["word"] * 5000})
    made = [job_ledger.submit(api.database, parse_spec(document), project="pages").id for _ in range(5)]
    monkeypatch.setattr(pages, "PAGE_BYTES", 50_000)
    client = api.client_of("pages")
    found: list[str] = []
    after = ""
    while True:
        answer = client.get(f"/v1/jobs?limit=5{after}").json()
        assert 1 <= len(answer["data"]) <= 2
        found += [entry["id"] for entry in answer["data"]]
        if not answer["has_more"]:
            break
        after = f"&after={answer['last_id']}"
    assert found == made[::-1]


def test_a_list_of_batches_has_the_first_errors_of_each(api: LiveApi) -> None:
    new = NewBatch("/v1/embeddings", "file_a", "24h", 3600, digest="d")
    batch = batches.create(api.database, new, project="default")
    errors = [{"code": "x", "message": "y", "line": line, "param": None} for line in range(1, 101)]
    with api.database.write() as session:
        kept = session.get(Batch, batch.id)
        assert kept is not None
        kept.errors = errors
    (entry,) = api.http.get("/v1/batches").json()["data"]
    assert entry["errors"]["data"] == errors[: lists.LISTED_ERRORS]
    assert api.http.get(f"/v1/batches/{batch.id}").json()["errors"]["data"] == errors


@pytest.mark.parametrize(
    ("name", "taken"), [("upload", True), ("rows", True), ("a.jsonl", True), ("a.JSONL", True), ("a.csv", False)]
)
def test_the_input_of_a_batch_may_have_a_name_without_ending(api: LiveApi, name: str, taken: bool) -> None:
    """SDKs call bytes that have no name `upload`."""
    answer = api.http.post("/v1/files", data={"purpose": "batch"}, files={"file": (name, b"{}\n")})
    assert answer.status_code == (200 if taken else 400)


@pytest.mark.parametrize("name", ["a\u202ejsonl.exe", "a\x9b31m.jsonl", "\u2066a\u2069.jsonl", "a\u200f.jsonl"])
def test_names_of_files_hold_nothing_that_a_terminal_obeys(api: LiveApi, name: str) -> None:
    answer = api.http.post("/v1/files", data={"purpose": "input"}, files={"file": (name, b"{}\n")})
    assert answer.status_code == 200
    assert answer.json()["filename"].isascii()


@pytest.mark.parametrize(
    "body",
    [
        b"--b\r\nContent-Disposition: form-data; name=" + b"x" * 20_000 + b"\r\n\r\n\r\n--b--\r\n",
        b"--b\r\n" + b"a: b\r\n" * 20_000 + b"\r\n\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\ninput\r\n--b--\r\n' + b"x" * 2**20,
    ],
)
def test_a_multipart_body_without_end_is_rejected(api: LiveApi, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert api.http.post("/v1/files", content=body, headers=headers).status_code == 400


def test_an_output_name_that_is_too_long_names_its_field(api: LiveApi, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 1)
    output = {"to": "jsonl", "path": str(tmp_path / ("x" * 256))}
    answer = api.http.post("/v1/jobs", json=spec_document(rows, output=output))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "output.path")


def test_the_api_is_well_after_hostile_requests(api: LiveApi) -> None:
    wait_until(lambda: api.client.health()["database"] == "ok", "the API is well")
