"""Messages doubled, shuffled or lost, workers frozen beyond their lease, schedulers doubled or killed: nothing is."""

from __future__ import annotations

import fcntl
import json
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from sqlalchemy import select
from sqlalchemy.engine import make_url

from jobs import process, queue
from jobs.child_modules import python_module
from jobs.config.settings import Settings
from jobs.db.tables import LeaderLock
from scheduler.client.http_client import StokerClient
from tests.conftest import wait_until
from tests.support.odd_model import WAITS, odd_encoder, trusting
from tests.support.records import Records, records_of
from tests.support.stack import Stack, free_port, stack
from tests.support.tiny import SENTENCES

NUM_ROWS, CHUNK_ROWS = 160, 8
QUICK = {
    "STOKER_LEASE_SECONDS": "4",
    "STOKER_SLOT_SECONDS": "4",
    "STOKER_DOORBELL_SECONDS": "2",
    "STOKER_LEADER_SECONDS": "2",
}
"""Short lives, so that what must be waited for is."""

pytestmark = pytest.mark.slow


@dataclass
class Site:
    """A running stack and what the tests give it."""

    stack: Stack
    records: Records
    folder: Path
    model: Path
    gate: Path
    settings: Settings

    def spec(self, *, waits_at: int | None = None, **fields: Any) -> dict[str, Any]:
        """A job of twenty small chunks, of which one may wait for the gate."""
        path = self.folder / f"rows-{waits_at}.jsonl"
        if not path.exists():  # a job may be reading it
            rows = ({"id": f"r{row}", "text": text_of(row, waits=row == waits_at)} for row in range(NUM_ROWS))
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        document = {"task": "embeddings", "model": str(self.model), "input": {"path": str(path), "key": "id"}}
        return {**document, "batching": {"chunk_rows": CHUNK_ROWS}, **fields}

    def expected(self, spec: dict[str, Any]) -> list[dict[str, Any]]:
        """The results of a job when nothing happens to it."""
        self.gate.touch()
        job_id = self.stack.submit(spec)
        self.assert_completed(job_id)
        return self.stack.results(job_id)

    def assert_completed(self, job_id: str) -> None:
        """Exactly once, with every row."""
        job = self.stack.await_end(job_id, 120)
        assert job["state"] == "completed", job
        assert job["counts"] == {"total": NUM_ROWS, "done": NUM_ROWS, "failed": 0}
        self.records.assert_sound(job_id)

    def leader(self) -> str:
        """The token of the scheduler that leads, or led last."""
        with self.records.database.read() as session:
            return session.scalars(select(LeaderLock)).one().owner

    def await_online(self) -> None:
        """Wait until every slot can be given work."""
        with self.stack.client() as client:
            wait_until(lambda: {slot["state"] for slot in client.slots()} == {"online"}, "every slot is online")


def text_of(row: int, *, waits: bool) -> str:
    """A row's text."""
    return f"{SENTENCES[row % len(SENTENCES)]} {row} {WAITS if waits else ''}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two slots."""
    folder = tmp_path_factory.mktemp("messages")
    gate = folder / "gate"
    model = odd_encoder(folder / "model", gate=gate)
    environment = {**QUICK, **trusting(model, folder / "modules")}
    with stack(folder / "data", slots=2, **environment) as running, records_of(running) as seen:
        yield Site(running, seen, folder, model, gate, Settings(data_dir=running.data_dir))


def test_every_message_three_times_and_shuffled(site: Site) -> None:
    spec = site.spec(waits_at=50)
    expected = site.expected(spec)
    site.gate.unlink()
    jobs = [site.stack.submit(spec) for _ in range(2)]
    wait_until(lambda: site.records.active_leases(jobs[0]), "the first job is being worked on")
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    app = queue.make_app(site.settings)
    ring_all_again(site, app, seed)
    site.gate.touch()
    for job_id in jobs:
        site.assert_completed(job_id)
        ring_all_again(site, app, seed + 1)
        assert site.stack.results(job_id) == expected
    site.assert_completed(site.stack.submit(spec))  # behind all the dead messages in both queues
    app.close()
    for lease in site.records.leases():
        started = [data for data in site.records.data(lease.job_id, "lease.active") if data["lease"] == lease.id]
        assert len(started) <= 1


def ring_all_again(site: Site, app: Any, seed: int) -> None:
    """Send the message of every lease there ever was three times, shuffled."""
    messages = [(lease.slot_id, lease.id) for lease in site.records.leases() for _ in range(3)]
    random.Random(seed).shuffle(messages)
    for slot_id, lease_id in messages:
        queue.ring(app, slot_id, lease_id)


def test_redis_loses_everything_while_a_job_is_queued(site: Site) -> None:
    spec = site.spec(waits_at=3)
    expected = site.expected(spec)
    site.gate.unlink()
    busy = [site.stack.submit(site.spec(waits_at=3, slots={"max": 1})) for _ in range(2)]
    wait_until(lambda: all(site.records.active_leases(job_id) for job_id in busy), "both slots are taken")
    waiting = site.stack.submit(spec)
    with site.stack.client() as client:
        wait_until(lambda: client.job(waiting)["state"] == "queued", "the third job waits")
    with redis.Redis(unix_socket_path=str(site.settings.redis_socket)) as broker:
        broker.flushall()
    site.gate.touch()
    for job_id in (*busy, waiting):
        site.assert_completed(job_id)
        assert site.stack.results(job_id) == expected


@pytest.mark.parametrize("first_awake", ["worker", pytest.param("runner", marks=pytest.mark.soak)])
def test_a_worker_frozen_beyond_its_lease_changes_nothing_when_it_wakes(site: Site, first_awake: str) -> None:
    spec = site.spec(waits_at=20, slots={"max": 1})
    expected = site.expected(spec)
    site.gate.unlink()
    site.await_online()
    job_id = site.stack.submit(spec)
    wait_until(lambda: site.records.num_rows_done(job_id) == 16, "the chunks before the one that waits are done")
    lease = site.records.active_leases(job_id)[0]
    worker, runner = processes_of(site, lease.slot_id)
    with frozen(site, worker, runner):
        wait_until(lambda: lease.id not in {live.id for live in site.records.live_leases()}, "the lease runs out")
        site.gate.touch()
        site.assert_completed(job_id)
        assert site.records.chunks(job_id)[-1].lease_id != lease.id
        assert site.stack.results(job_id) == expected
        events = [event.id for event in site.records.events(job_id)]

        if first_awake == "runner":  # it computes its chunk and tries to commit, and nobody is there to stop it
            runner.resume()
            wait_until(lambda: is_idle(runner), "the zombie has done what it could")
            worker.resume()
        else:
            worker.resume()
            wait_until(
                lambda: not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE, "the runner is killed"
            )
    site.await_online()
    assert [event.id for event in site.records.events(job_id)] == events
    assert site.stack.results(job_id) == expected
    site.records.assert_sound(job_id)
    again = [site.stack.submit(spec) for _ in range(2)]
    for other in again:
        site.assert_completed(other)
    wait_until(lambda: len(site.stack.of_role("runner")) == 2, "each slot has one runner again")


def processes_of(site: Site, slot_id: str) -> tuple[psutil.Process, psutil.Process]:
    """The Celery worker of a slot and its runner."""
    worker = next(found for found in site.stack.of_role("celery") if slot_id in found.cmdline())
    return worker, next(found for found in site.stack.of_role("runner") if found.ppid() == worker.pid)


@contextmanager
def frozen(site: Site, *victims: psutil.Process) -> Iterator[None]:
    """Stop processes for the block, none of them with SQLite's lock in hand: it would keep every other from writing,
    and so from telling that they are gone.
    """
    try:
        while True:
            for victim in victims:
                victim.suspend()
            if can_be_written(site, within_seconds=2.0):
                break
            for victim in victims:
                victim.resume()
        yield
    finally:
        for victim in victims:
            with suppress(psutil.NoSuchProcess):  # woken by the test, it may have been killed since
                victim.resume()


def can_be_written(site: Site, *, within_seconds: float) -> bool:
    """Whether the database's two locks become free: the one that writers queue for, and SQLite's own."""
    path = make_url(site.settings.resolved_database_url).database
    assert path is not None
    deadline = time.monotonic() + within_seconds
    with Path(f"{path}-turn").open("a") as turn, closing(sqlite3.connect(path, timeout=0.0)) as connection:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                connection.execute("BEGIN IMMEDIATE")
            except (BlockingIOError, sqlite3.OperationalError):
                fcntl.flock(turn, fcntl.LOCK_UN)
                time.sleep(0.01)  # flock can wait for ever or not at all, nothing between
                continue
            connection.rollback()
            return True
    return False


_spent: dict[int, list[float]] = {}


def is_idle(candidate: psutil.Process) -> bool:
    """Whether a process has used no processor time during the last 25 times that this was asked."""
    times = candidate.cpu_times()
    spent = _spent.setdefault(candidate.pid, [])
    spent.append(times.user + times.system)
    return len(spent) > 25 and spent[-1] == spent[-25]


def test_two_schedulers_have_one_leader_and_one_follows_the_other(site: Site) -> None:
    spec = site.spec()
    expected = site.expected(spec)
    with second_scheduler(site) as (other, client):
        leader = site.leader()
        job_id = client.submit(spec)["id"]
        site.assert_completed(job_id)
        assert site.leader() == leader
        planned = ["job.submitted", "job.queued", "job.finalizing", "job.completed"]
        assert [event.name for event in site.records.events(job_id, *planned)] == planned
        assert site.stack.results(job_id) == expected

        assert site.stack.up is not None
        site.stack.up.send_signal(signal.SIGSTOP)  # so that it does not start the killed one again at once
        try:
            killed = next(found for found in site.stack.of_role("scheduler"))
            assert killed.pid != other.pid
            killed.kill()
            job_id = client.submit(spec)["id"]
            assert client.wait(job_id, timeout_seconds=300)["state"] == "completed"
            assert site.leader() != leader
        finally:
            site.stack.up.send_signal(signal.SIGCONT)
        site.assert_completed(job_id)
        assert site.stack.results(job_id) == expected
    wait_until(lambda: site.stack.of_role("scheduler"), "the killed one is back")
    site.assert_completed(site.stack.submit(spec))


@contextmanager
def second_scheduler(site: Site) -> Iterator[tuple[subprocess.Popen[bytes], StokerClient]]:
    """Another API with scheduler, as `stoker serve` runs it, on the same database, Redis and store."""
    port = free_port()
    settings = site.settings
    environment = {
        **site.stack.environment,
        "STOKER_DATA_DIR": str(site.folder / "second"),
        "STOKER_DATABASE_URL": settings.resolved_database_url,
        "STOKER_REDIS_URL": settings.resolved_redis_url,
        "STOKER_STORE_URL": settings.resolved_store_url,
        "STOKER_PORT": str(port),
        "STOKER_INPUT_ROOTS": '["/"]',
        "STOKER_OUTPUT_ROOTS": '["/"]',
    }
    with (site.folder / "second.log").open("wb") as log:
        started = process.spawn(python_module("scheduler.api.serve"), env=environment, stdout=log, stderr=log)
    key = settings.local_key_path.read_text().strip()
    try:
        with StokerClient(f"http://127.0.0.1:{port}", key, retry_seconds=60) as client:
            assert client.jobs_page(limit=1)["object"] == "list"
            yield started, client
    finally:
        assert process.end(started, 60.0) == 0
