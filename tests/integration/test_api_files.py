"""Uploads over HTTP: whole or not at all, never held in memory, bounded, in OpenAI's form."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlmodel import col, select

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.tables import StoredFile
from jobs.ledger.accounts.uploads import withdraw_unused
from scheduler.client.http_client import ApiError
from tests.conftest import wait_until
from tests.support.live_api import LiveApi, live_api, spec_document
from tests.support.rows import write_rows

_LIMIT = 3 * 2**20


@pytest.fixture
def api(settings: Settings, sqlite_database: Database) -> Iterator[LiveApi]:
    """A running API that takes uploads up to 3 MiB."""
    with live_api(settings.model_copy(update={"max_upload_bytes": _LIMIT}), sqlite_database) as running:
        yield running


def nothing_is_left(api: LiveApi) -> bool:
    """Whether neither table nor store holds a file."""
    with api.database.read() as session:
        listed = session.exec(select(StoredFile)).all()
    folder = Path(api.settings.resolved_store_url)
    return not listed and not [path for path in folder.rglob("*") if path.is_file()]


def multipart(*parts: tuple[str, bytes], boundary: str = "frontier") -> tuple[bytes, dict[str, str]]:
    """A body of these parts, each a header's rest and its content."""
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in parts
    )
    return body + f"--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


_PURPOSE = ('name="purpose"', b"input")
_FILE = ('name="file"; filename="rows.jsonl"', b'{"text": "a"}\n')


def test_a_file_comes_back_as_it_was_sent(api: LiveApi, tmp_path: Path) -> None:
    content = b"\r\n--frontier\r\n\r\n--" * 5_000 + bytes(range(256)) * 1_000
    path = tmp_path / "rows.bin"
    path.write_bytes(content)
    sent: list[int] = []
    file = api.client.upload(path, on_progress=sent.append)
    assert file == {
        "id": file["id"], "object": "file", "bytes": len(content), "created_at": file["created_at"],
        "filename": "rows.bin", "purpose": "input", "status": "processed", "expires_at": file["expires_at"],
    }  # fmt: skip
    assert re.fullmatch(r"file_[0-9a-f]+", file["id"])
    assert isinstance(file["created_at"], int)
    assert file["expires_at"] > file["created_at"]
    assert sent[-1] == len(content)
    assert api.client.file(file["id"]) == file
    assert api.client.download_file(file["id"], tmp_path / "back") == len(content)
    assert (tmp_path / "back").read_bytes() == content
    answer = api.http.get(f"/v1/files/{file['id']}/content")
    assert answer.headers["x-content-sha256"] == hashlib.sha256(content).hexdigest()


def test_fields_may_stand_before_or_after_the_file(api: LiveApi) -> None:
    expiry = (('name="expires_after[anchor]"', b"created_at"), ('name="expires_after[seconds]"', b"7200"))
    for parts in ((_PURPOSE, *expiry, _FILE), (_FILE, *expiry, _PURPOSE)):
        body, headers = multipart(*parts)
        answer = api.http.post("/v1/files", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        file = answer.json()
        assert file["filename"] == "rows.jsonl"
        assert file["expires_at"] in (file["created_at"] + 7200, file["created_at"] + 7201)


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((('name="purpose"', b"brewing"), _FILE), "purpose"),
        ((_FILE,), "purpose"),
        ((_FILE, ('name="purpose"', b"brewing")), "purpose"),
        ((_PURPOSE,), "file"),
        ((_PURPOSE, ('name="file"', b"no filename")), "file"),
        ((_PURPOSE, _FILE, _FILE), "file"),
        ((_PURPOSE, ('name="other"; filename="x"', b"x")), "file"),
        ((('name="purpose"', b"batch"), ('name="file"; filename="x.csv"', b"x")), "file"),
        ((('name="file"; filename="x.csv"', b"x"), ('name="purpose"', b"batch")), "file"),
        ((_PURPOSE, ('name="expires_after[seconds]"', b"1"), _FILE), "expires_after.seconds"),
        ((_PURPOSE, ('name="expires_after[seconds]"', b"9" * 30), _FILE), "expires_after.seconds"),
        ((_PURPOSE, ('name="expires_after[anchor]"', b"now"), _FILE), "expires_after.anchor"),
        ((('name="purpose"', b"\xff\xfe"), _FILE), "purpose"),
        ((('name="purpose"', b"x" * 5000), _FILE), "purpose"),
        ((("", b"x"), _FILE), None),
        (tuple((f'name="f{number}"', b"x") for number in range(30)), None),
    ],
)
def test_a_wrong_upload_is_named_and_leaves_nothing(
    api: LiveApi, parts: tuple[tuple[str, bytes], ...], param: str | None
) -> None:
    body, headers = multipart(*parts)
    answer = api.http.post("/v1/files", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert nothing_is_left(api)


@pytest.mark.parametrize("end", [10, 60, 150, -1, -5, -20])
def test_a_body_that_ends_early_leaves_nothing(api: LiveApi, end: int) -> None:
    body, headers = multipart(_PURPOSE, _FILE)
    answer = api.http.post("/v1/files", content=body[:end] if end != -1 else body[:-6], headers=headers)
    assert answer.status_code == 400, answer.text
    assert nothing_is_left(api)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=x",
        "\xff",
    ],
)
def test_another_content_type_is_refused(api: LiveApi, content_type: str) -> None:
    headers = {"Content-Type": content_type.encode("latin-1")}
    answer = api.http.post("/v1/files", content=b"x", headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 400


def test_a_boundary_that_is_absurd_is_refused(api: LiveApi) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary={'x' * 3000}"}
    assert api.http.post("/v1/files", content=b"x", headers=headers).status_code == 400


def test_too_large_a_file_is_refused_by_its_length_or_on_the_way(api: LiveApi, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(bytes(_LIMIT + 1))
    with pytest.raises(ApiError) as slightly:  # within what the form may add, so the store counts it
        api.client.upload(path)
    path.write_bytes(bytes(2 * _LIMIT))
    with pytest.raises(ApiError) as far:
        api.client.upload(path)

    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(200):
            yield bytes(2**16)

    chunked = api.http.post("/v1/files", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (slightly.value.status, far.value.status, chunked.status_code) == (413, 413, 413)
    assert nothing_is_left(api)


def test_a_client_that_goes_away_leaves_nothing_and_stops_nothing(api: LiveApi) -> None:
    parts = urlsplit(api.url)
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port or 80)) as connection:
        head = (
            f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\nContent-Length: 2000000\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\ninput\r\n'
            '--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        )
        connection.sendall(head.encode() + bytes(100_000))
        folder = Path(api.settings.resolved_store_url)
        wait_until(lambda: any(path.is_file() for path in folder.rglob("*")), "the upload is being written")
    wait_until(lambda: nothing_is_left(api), "the upload is cleaned up")
    assert api.client.health()["database"] == "ok"


def test_slow_uploads_delay_no_other_request(api: LiveApi) -> None:
    parts = urlsplit(api.url)
    assert parts.hostname is not None
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\nContent-Length: 2000000\r\n"
        'Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; '
        'filename="x"\r\n\r\n'
    )
    with ExitStack() as stack:
        for _ in range(60):
            connection = stack.enter_context(socket.create_connection((parts.hostname, parts.port or 80)))
            connection.sendall(head.encode() + b"x")
        folder = Path(api.settings.resolved_store_url)
        wait_until(
            lambda: len([path for path in folder.rglob("*") if path.is_file()]) >= 8, "a key's share is under way"
        )
        assert list(api.client.jobs()) == []
        assert api.client.health()["database"] == "ok"
    wait_until(lambda: nothing_is_left(api), "all are cleaned up")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\temp\\\\rows.jsonl", "rows.jsonl"),
        ("a\x00\x1fb.jsonl", "ab.jsonl"),
        ("ü\u4e2d.jsonl", "ü\u4e2d.jsonl"),
        ("x" * 300 + ".jsonl", "x" * 249 + ".jsonl"),
        ("", "upload"),
    ],
)
def test_a_file_name_is_only_a_name(api: LiveApi, sent: str, kept: str) -> None:
    body, headers = multipart(_PURPOSE, (f'name="file"; filename="{sent}"', b"x"))
    answer = api.http.post("/v1/files", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == kept


def test_files_are_listed_in_pages_and_by_purpose(api: LiveApi, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 1)
    ids = [api.client.upload(rows, purpose=purpose)["id"] for purpose in ("input", "batch", "input", "input")]
    assert [file["id"] for file in api.client.files()] == ids[::-1]
    assert [file["id"] for file in api.client.files(purpose="batch")] == [ids[1]]
    page = api.http.get("/v1/files", params={"limit": 3, "order": "asc"}).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[:3], True)
    rest = api.http.get("/v1/files", params={"after": page["last_id"], "order": "asc"}).json()
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == (ids[3:], False)


def test_an_uploaded_file_can_be_read_by_a_job_and_is_kept_for_it(api: LiveApi, tmp_path: Path) -> None:
    file = api.client.upload(write_rows(tmp_path / "rows.jsonl", 2))
    job = api.client.submit(spec_document(f"file:{file['id']}"))
    with pytest.raises(ApiError) as refused:
        api.client.delete_file(file["id"])
    assert refused.value.status == 409
    assert job["id"] in refused.value.message
    api.client.cancel(job["id"])
    answer = api.http.delete(f"/v1/files/{file['id']}")
    assert answer.json() == {"id": file["id"], "object": "file", "deleted": True}
    assert nothing_is_left(api)
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert api.http.request(method, f"/v1/files/{file['id']}{path}").status_code == 404


def test_a_file_that_is_being_deleted_is_not_found_by_any_route(api: LiveApi, tmp_path: Path) -> None:
    body, headers = multipart(('name="purpose"', b"batch"), _FILE)
    file_id = api.http.post("/v1/files", content=body, headers=headers).json()["id"]
    withdraw_unused(api.database, col(StoredFile.id) == file_id)
    assert api.http.get("/v1/files").json()["data"] == []
    assert api.http.get(f"/v1/files/{file_id}").status_code == 404
    batch = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    job = spec_document(f"file:{file_id}")
    for path, document, message in (
        ("batches", batch, "input_file_id: there is no file"),
        ("jobs", job, "input.path: there is no uploaded file"),
    ):
        assert api.http.post(f"/v1/{path}", json=document).json()["error"]["message"].startswith(message)


def test_many_uploads_at_once_do_not_starve_each_other(api: LiveApi, tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    path.write_bytes(bytes(2**20))
    done: list[str] = []
    threads = [
        threading.Thread(target=lambda: done.append(api.client.upload(path)["id"]), daemon=True) for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(set(done)) == len(threads)
