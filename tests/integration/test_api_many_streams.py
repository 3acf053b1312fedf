"""Many streams at once: those of one job share the looks at it, and no number of them holds up other requests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.ledger import jobs as job_ledger
from jobs.ledger import logs
from jobs.ledger.leasing import leases
from scheduler.api.bodies import job_looks, job_stream
from scheduler.api.bodies.job_looks import Ask, Seen
from scheduler.api.context import Context
from scheduler.api.shared_reads import READS_AT_ONCE
from tests.conftest import wait_until
from tests.support.leased_job import LeasedJob
from tests.support.live_api import LiveApi, live_api


class HeldLooks:
    """Every look of an API, each of which waits until the test lets it go on."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        """The number of streams that each look answers, in the order in which the looks began."""
        self.num_ended = 0
        self.gate = threading.Event()
        self.gate.set()

    def look(self, context: Context, job_id: str, asks: Sequence[Ask]) -> list[Seen]:
        """In place of the real one."""
        self.asked.append(len(asks))
        assert self.gate.wait(300)
        seen = job_looks.look(context, job_id, asks)
        self.num_ended += 1
        return seen

    @property
    def num_held(self) -> int:
        """Number of looks that have begun and not ended."""
        return len(self.asked) - self.num_ended


@pytest.fixture
def api(settings: Settings, database: Database) -> Iterator[LiveApi]:
    """A running API on each kind of database."""
    with live_api(settings, database) as running:
        yield running


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldLooks]:
    """The looks of the test's API."""
    held = HeldLooks()
    monkeypatch.setattr(job_stream, "look", held.look)
    yield held
    held.gate.set()


@contextmanager
def streams(api: LiveApi, *job_ids: str, path: str = "events?progress=true") -> Iterator[list[socket.socket]]:
    """A connection for each job id, which follows that job."""
    parts = urlsplit(api.url)
    with ExitStack() as opened:
        found = []
        for job_id in job_ids:
            connection = opened.enter_context(socket.create_connection((parts.hostname or "", parts.port or 0), 300))
            head = f"GET /v1/jobs/{job_id}/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            connection.sendall(f"{head}Authorization: Bearer {api.key}\r\n\r\n".encode())
            found.append(connection)
        yield found


def read_until(connection: socket.socket, what: bytes) -> bytes:
    """What a stream sends, up to some text at least."""
    seen = b""
    while what not in seen:
        block = connection.recv(65536)
        assert block, seen
        seen += block
    return seen


def num_asking(api: LiveApi, job_id: str) -> int:
    """Number of streams that wait for the next look at a job."""
    app: Any = api.server._app
    rounds = app.state.context.looks._rounds
    return len(rounds[job_id].asks) if job_id in rounds else 0


@pytest.mark.parametrize("path", ["events?progress=true", "logs?follow=true"])
def test_two_hundred_streams_of_one_job_share_its_looks(
    api: LiveApi, tmp_path: Path, looks: HeldLooks, path: str
) -> None:
    job = LeasedJob(api.database, api.settings, tmp_path, [{"id": "a", "text": "a"}])
    lease = job.lease()
    job_ids = [job.job_id] * 200
    with streams(api, *job_ids, path=path) as opened:
        for connection in opened:
            read_until(connection, b"retry: ")
        looks.gate.clear()
        wait_until(lambda: looks.num_held == 1, "a look is held")
        wait_until(lambda: looks.asked[-1] + num_asking(api, job.job_id) == 200, "all streams wait for a look")
        assert all(api.http.get(f"/v1/jobs/{job.job_id}").status_code == 200 for _ in range(30))
        assert looks.num_held == 1, "there is one look at a job at a time"
        number, num_waiting = len(looks.asked), num_asking(api, job.job_id)
        logs.append(api.database, lease, [(1.0, "the line")], max_lines=10)
        job_ledger.cancel(api.database, job.job_id)
        looks.gate.set()
        for connection in opened:
            read_until(connection, b"the line" if path.startswith("logs") else b"event: job.cancelling")
        # On a busy machine, the look that was held may have all streams already.
        assert not num_waiting or looks.asked[number] >= num_waiting, "the next look answered all that waited"
        leases.release(api.database, lease.lease_id, "cancelled")
        for connection in opened:
            read_until(connection, b"event: end")


def test_streams_of_many_jobs_leave_the_threads_of_requests_free(
    api: LiveApi, tmp_path: Path, looks: HeldLooks
) -> None:
    jobs = [LeasedJob(api.database, api.settings, tmp_path, [{"id": "a", "text": "a"}]) for _ in range(30)]
    looks.gate.clear()
    with streams(api, *(job.job_id for job in jobs)) as opened:
        for connection in opened:
            read_until(connection, b"retry: ")
        wait_until(lambda: looks.num_held == READS_AT_ONCE, "as many looks as may run are held")
        assert all(api.http.get(f"/v1/jobs/{job.job_id}").status_code == 200 for job in jobs)
        assert looks.num_held == READS_AT_ONCE
        looks.gate.set()
        for connection in opened:
            read_until(connection, b"event: progress")


def test_streams_that_start_at_different_entries_get_each_entry_once(api: LiveApi, tmp_path: Path) -> None:
    job = LeasedJob(api.database, api.settings, tmp_path, [{"id": "a", "text": "a"}])
    lease = job.lease()
    ids = [event["id"] for event in api.client.events(job.job_id, follow=False)]
    with ExitStack() as each:
        opened = [
            each.enter_context(streams(api, job.job_id, path=f"events?after={after}"))[0] for after in [0, *ids] * 3
        ]
        job_ledger.cancel(api.database, job.job_id)
        leases.release(api.database, lease.lease_id, "cancelled")
        sent = [read_until(connection, b"event: end") for connection in opened]
    all_ids = [event["id"] for event in api.client.events(job.job_id, follow=False)]
    for number, after in enumerate([0, *ids] * 3):
        found = [int(line[4:]) for line in sent[number].splitlines() if line.startswith(b"id: ")]
        assert found == [entry_id for entry_id in all_ids if entry_id > after]


def test_a_deleted_job_ends_all_its_streams(api: LiveApi, tmp_path: Path, looks: HeldLooks) -> None:
    job = LeasedJob(api.database, api.settings, tmp_path, [{"id": "a", "text": "a"}])
    with streams(api, *[job.job_id] * 5) as opened:
        for connection in opened:
            read_until(connection, b"event: progress")
        with api.database.write() as session:
            for table in ("chunks", "events", "jobs"):
                session.connection().exec_driver_sql(f"DELETE FROM {table}")
        for connection in opened:
            while block := connection.recv(65536):
                assert b"event: end" not in block
