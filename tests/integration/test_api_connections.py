"""Connections that do nothing are ended, and neither they nor stuck uploads stop anybody else."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from scheduler.api.protocol import fitting
from tests.conftest import wait_until
from tests.support.live_api import LiveApi, fresh_api

_MOST = 12


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """A running API with very short timeouts."""
    limits = {"request_seconds": 0.5, "client_idle_seconds": 0.5, "connections": _MOST, "key_uploads": 2}
    with fresh_api(tmp_path_factory.mktemp("connections"), **limits) as running:
        yield running


def connect(api: LiveApi, sent: bytes = b"") -> socket.socket:
    """A connection on which so much was sent."""
    parts = urlsplit(api.url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60)
    connection.sendall(sent)
    return connection


def answer_of(connection: socket.socket) -> bytes:
    """Everything received until the server closes the connection, which is what the tests wait for."""
    received = b""
    with connection, contextlib.suppress(ConnectionResetError):
        while block := connection.recv(65536):
            received += block
    return received


def upload_head(api: LiveApi, key: str = "") -> bytes:
    """The beginning of an upload whose rest never comes."""
    return (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key or api.key}\r\nContent-Length: 1000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    ).encode()


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: b"])
def test_a_request_whose_head_does_not_come_is_cut_off(api: LiveApi, sent: bytes) -> None:
    assert answer_of(connect(api, sent)) == b""


def test_a_head_that_trickles_in_is_cut_off(api: LiveApi) -> None:
    connection = connect(api, b"GET /healthz HTTP/1.1\r\n")
    gone: list[bool] = []

    def is_cut() -> bool:
        try:
            connection.sendall(b"A: b\r\n")
        except OSError:
            gone.append(True)
        return bool(gone)

    with connection:
        wait_until(is_cut, "the connection is cut off while bytes still come")


def test_the_second_request_of_a_connection_is_watched_too(api: LiveApi) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    received = answer_of(connect(api, request + request[:-2]))
    assert received.count(b"HTTP/1.1 200 OK") == 1


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/batches", "/v1/webhooks", "/v1/files"])
def test_a_body_that_does_not_come_is_answered_408(api: LiveApi, path: str) -> None:
    head = upload_head(api).replace(b"/v1/files", path.encode())
    received = answer_of(connect(api, head))
    assert received.startswith(b"HTTP/1.1 408 ")
    error = json.loads(received.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "request_timeout"


def test_more_connections_than_allowed_are_refused_at_once(api: LiveApi) -> None:
    """Without a bound the process runs out of files, and asyncio writes a traceback for each that it cannot take."""
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as open_ones:
        statuses = set()
        for _ in range(_MOST + 1):  # each is kept open behind its answer
            connection = open_ones.enter_context(connect(api, request))
            statuses.add(connection.recv(100).split(b"\r\n")[0])
        assert statuses == {b"HTTP/1.1 200 OK", b"HTTP/1.1 503 Service Unavailable"}
        received = answer_of(connect(api))
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "service_unavailable"

    def is_well() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{api.url}/healthz", timeout=300, trust_env=False).status_code == 200
        return False

    wait_until(is_well, "the API goes on when those are gone")


def test_stuck_uploads_of_one_key_stop_no_other(tmp_path: Path) -> None:
    with fresh_api(tmp_path, key_uploads=2, client_idle_seconds=3600.0) as running:
        with ExitStack() as stuck:
            for _ in range(40):  # more than there are threads for uploads
                stuck.enter_context(connect(running, upload_head(running)))
            other = running.client_of("search")
            files = {"file": ("a.jsonl", b"{}\n")}
            assert other.post("/v1/files", data={"purpose": "input"}, files=files).status_code == 200
        files = {"file": ("a.jsonl", b"{}\n")}
        assert running.http.post("/v1/files", data={"purpose": "input"}, files=files).status_code == 200


def test_connections_fit_into_the_files_that_a_process_may_open() -> None:
    assert fitting(1) == 1
    assert fitting(2**40) < 2**40
