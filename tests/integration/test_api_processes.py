"""Several processes that serve the API on one port: one that is killed takes little with it and comes back."""

from __future__ import annotations

import http.client
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from sqlalchemy import select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.tables import LeaderLock
from scheduler.client.http_client import StokerClient
from tests.conftest import wait_until
from tests.support.live_api import spec_document
from tests.support.rows import write_rows
from tests.support.serve_process import client_of, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def several(served: Settings) -> Settings:
    """Settings with two API processes."""
    return served.model_copy(update={"api_processes": 2})


def api_processes(serve_pid: int) -> list[psutil.Process]:
    """The API processes of a serving process."""
    children = psutil.Process(serve_pid).children()
    return [child for child in children if "scheduler.api.api_process" in child.cmdline()]


def num_ready(log: Path) -> int:
    """How many API processes have become ready so far."""
    return log.read_text().count("Application startup complete")


class Load:
    """Requests one after the other, each on a new connection, until the end of a block."""

    def __init__(self, url: str, key: str, path: str) -> None:
        self.address = urlsplit(url).netloc
        self._path, self._headers = path, {"Authorization": f"Bearer {key}"}
        self.num_served = self.num_failed = 0
        self._is_over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send requests inside the block."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            connection = http.client.HTTPConnection(self.address, timeout=300)
            try:
                connection.request("GET", self._path, headers=self._headers)
                assert connection.getresponse().status == 200
                self.num_served += 1
            except (OSError, http.client.HTTPException):
                self.num_failed += 1
            finally:
                connection.close()


def open_stream(client: StokerClient, key: str, job_id: str) -> socket.socket:
    """A connection that follows a job, and has got its first bytes."""
    parts = urlsplit(client.url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), 300)
    head = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
    connection.sendall(head.encode())
    assert connection.recv(65536)
    return connection


def num_streams(process: psutil.Process, opened: list[socket.socket]) -> int:
    """How many of these connections a process serves."""
    ports = {connection.getsockname()[1] for connection in opened}
    return sum(bool(found.raddr) and found.raddr.port in ports for found in process.net_connections("tcp"))


def rest_of(connection: socket.socket) -> bytes:
    """What a stream sends up to its end, however it ends."""
    rest = b""
    try:
        while block := connection.recv(65536):
            rest += block
    except ConnectionResetError:
        pass
    return rest


def leader_of(settings: Settings) -> str:
    """The scheduler that leads."""
    database = Database(settings.resolved_database_url)
    with database.read() as session:
        owner = session.scalars(select(col(LeaderLock.owner))).one()
    database.close()
    return owner


def test_the_others_serve_while_a_killed_api_process_is_started_again(several: Settings, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with serving(several, log) as serve, client_of(several) as client, ExitStack() as streams:
        wait_until(lambda: num_ready(log) == 2, log.read_text)
        wait_until(lambda: client.health()["status"] == "ok", "the scheduler leads")
        leader = leader_of(several)
        key = several.local_key_path.read_text().strip()
        job = client.submit(spec_document(write_rows(tmp_path / "rows.jsonl", 5)))
        victim, other = api_processes(serve.pid)
        opened: list[socket.socket] = []

        def both_have_streams() -> bool:
            opened.append(streams.enter_context(open_stream(client, key, job["id"])))
            return min(num_streams(victim, opened), num_streams(other, opened)) > 0

        wait_until(both_have_streams, "both processes accept connections")
        num_lost = num_streams(victim, opened)
        load = Load(client.url, key, f"/v1/jobs/{job['id']}")
        with load.running():
            wait_until(lambda: load.num_served > 20, "requests are served")
            victim.kill()
            wait_until(lambda: not victim.is_running(), "the process is gone")
            num_served = load.num_served
            wait_until(lambda: load.num_served > num_served + 1, "requests are served")
            num_failed = load.num_failed
            assert num_failed <= 2, "only the request that the process had accepted fails"
            wait_until(lambda: num_ready(log) == 3, "another one is started and serves")
            num_served = load.num_served
            wait_until(lambda: load.num_served > num_served + 20, "requests are served")
            assert len(api_processes(serve.pid)) == 2
            assert load.num_failed == num_failed, "no connection is refused meanwhile"
        client.cancel(job["id"])
        ends = [b"event: end" in rest_of(connection) for connection in opened]
        assert ends.count(False) == num_lost, "streams of the other process go on"
        assert other.is_running()
        assert leader_of(several) == leader, "the scheduler went on leading"


def test_a_signal_ends_all_api_processes_in_order(several: Settings, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with serving(several, log) as serve, client_of(several) as client:
        wait_until(lambda: num_ready(log) == 2, log.read_text)
        processes = api_processes(serve.pid)
        key = several.local_key_path.read_text().strip()
        job = client.submit(spec_document(write_rows(tmp_path / "rows.jsonl", 5)))
        with open_stream(client, key, job["id"]) as stream:
            serve.send_signal(signal.SIGTERM)
            assert b"event: end" not in rest_of(stream)
        wait_until(lambda: serve.poll() is not None, "the process ends")
        assert serve.returncode == 0, log.read_text()
        assert not any(process.is_running() for process in processes)
    assert not several.url_path.exists()
    assert "Traceback" not in log.read_text()


def test_no_api_process_outlives_a_killed_serve(several: Settings, tmp_path: Path) -> None:
    """They would keep the port from the next one."""
    log = tmp_path / "serve.log"
    with serving(several, log) as serve:
        wait_until(lambda: num_ready(log) == 2, log.read_text)
        processes = api_processes(serve.pid)
        port = int(several.url_path.read_text().strip().rpartition(":")[2])
        serve.kill()
        serve.wait()
        wait_until(lambda: not any(process.is_running() for process in processes), "they end too")
    several.url_path.unlink()
    with serving(several.model_copy(update={"port": port}), log), client_of(several) as client:
        wait_until(lambda: client.health()["status"] == "ok", "it serves on the same port")
