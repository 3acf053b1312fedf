"""Messages doubled, shuffled or lost, workers frozen beyond their lease, schedulers doubled or killed: nothing is."""

from __future__ import annotations

import fcntl
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from sqlalchemy import select
from sqlalchemy.engine import make_url

from jobs import process, queue
from jobs.child_modules import python_module
from jobs.db.tables import LeaderLock
from scheduler.client.http_client import StokerClient
from tests.conftest import wait_until
from tests.support.deployment import Deployment, deployment, numbered_texts
from tests.support.odd_model import WAITS
from tests.support.stack import free_port

NUM_ROWS, CHUNK_ROWS = 160, 8
QUICK = {
    "STOKER_LEASE_SECONDS": "4",
    "STOKER_SLOT_SECONDS": "4",
    "STOKER_DOORBELL_SECONDS": "2",
    "STOKER_LEADER_SECONDS": "2",
}
"""Short times, so that tests do not wait long for expiry."""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two slots."""
    with deployment(tmp_path_factory.mktemp("messages"), slots=2, **QUICK) as running:
        yield running


def spec_of(deployed: Deployment, *, waits_at: int | None = None, **fields: Any) -> dict[str, Any]:
    """A job of twenty small chunks, of which one may wait for the gate."""
    texts = numbered_texts(NUM_ROWS, {} if waits_at is None else {waits_at: WAITS})
    return deployed.spec(f"rows-{waits_at}", texts, chunk_rows=CHUNK_ROWS, **fields)


def expected_results(deployed: Deployment, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of a job when nothing happens to it."""
    deployed.gate.touch()
    results = deployed.stack.results(deployed.completed(spec))
    assert len(results) == NUM_ROWS
    return results


def leader_of(deployed: Deployment) -> str:
    """The token of the scheduler that leads, or led last."""
    with deployed.records.database.read() as session:
        return session.scalars(select(LeaderLock)).one().owner


def await_online(deployed: Deployment) -> None:
    """Wait until every slot can be given work."""
    with deployed.stack.client() as client:
        wait_until(lambda: {slot["state"] for slot in client.slots()} == {"online"}, "every slot is online")


def test_every_message_three_times_and_shuffled(deployed: Deployment) -> None:
    spec = spec_of(deployed, waits_at=50)
    expected = expected_results(deployed, spec)
    deployed.gate.unlink()
    jobs = [deployed.stack.submit(spec) for _ in range(2)]
    wait_until(lambda: deployed.records.active_leases(jobs[0]), "the first job is being worked on")
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    app = queue.make_app(deployed.settings)
    ring_all_again(deployed, app, seed)
    deployed.gate.touch()
    for job_id in jobs:
        deployed.assert_completed(job_id)
        ring_all_again(deployed, app, seed + 1)
        assert deployed.stack.results(job_id) == expected
    deployed.completed(spec)  # behind all the dead messages in both queues
    app.close()
    for lease in deployed.records.leases():
        started = [data for data in deployed.records.data(lease.job_id, "lease.active") if data["lease"] == lease.id]
        assert len(started) <= 1


def ring_all_again(deployed: Deployment, app: Any, seed: int) -> None:
    """Send the message of every lease there ever was three times, shuffled."""
    messages = [(lease.slot_id, lease.id) for lease in deployed.records.leases() for _ in range(3)]
    random.Random(seed).shuffle(messages)
    for slot_id, lease_id in messages:
        queue.ring(app, slot_id, lease_id)


def test_redis_loses_everything_while_a_job_is_queued(deployed: Deployment) -> None:
    spec = spec_of(deployed, waits_at=3)
    expected = expected_results(deployed, spec)
    deployed.gate.unlink()
    busy = [deployed.stack.submit(spec_of(deployed, waits_at=3, slots={"max": 1})) for _ in range(2)]
    wait_until(lambda: all(deployed.records.active_leases(job_id) for job_id in busy), "both slots are taken")
    waiting = deployed.stack.submit(spec)
    with deployed.stack.client() as client:
        wait_until(lambda: client.job(waiting)["state"] == "queued", "the third job waits")
    with redis.Redis(unix_socket_path=str(deployed.settings.redis_socket)) as broker:
        broker.flushall()
    deployed.gate.touch()
    for job_id in (*busy, waiting):
        deployed.assert_completed(job_id)
        assert deployed.stack.results(job_id) == expected


@pytest.mark.parametrize("first_awake", ["worker", pytest.param("runner", marks=pytest.mark.soak)])
def test_a_worker_frozen_beyond_its_lease_changes_nothing_when_it_wakes(deployed: Deployment, first_awake: str) -> None:
    spec = spec_of(deployed, waits_at=20, slots={"max": 1})
    expected = expected_results(deployed, spec)
    deployed.gate.unlink()
    await_online(deployed)
    job_id = deployed.stack.submit(spec)
    wait_until(lambda: deployed.records.num_rows_done(job_id) == 16, "the chunks before the one that waits are done")
    lease = deployed.records.active_leases(job_id)[0]
    worker, runner = processes_of(deployed, lease.slot_id)
    with frozen(deployed, worker, runner):
        wait_until(lambda: lease.id not in {live.id for live in deployed.records.live_leases()}, "the lease runs out")
        deployed.gate.touch()
        deployed.assert_completed(job_id)
        assert deployed.records.chunks(job_id)[-1].lease_id != lease.id
        assert deployed.stack.results(job_id) == expected
        events = [event.id for event in deployed.records.events(job_id)]

        if first_awake == "runner":  # it computes its chunk and tries to commit, and nobody is there to stop it
            runner.resume()
            wait_until(idle(runner), "the zombie has done what it could")
            worker.resume()
        else:
            worker.resume()
            wait_until(
                lambda: not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE, "the runner is killed"
            )
    await_online(deployed)
    assert [event.id for event in deployed.records.events(job_id)] == events
    assert deployed.stack.results(job_id) == expected
    deployed.records.assert_sound(job_id)
    again = [deployed.stack.submit(spec) for _ in range(2)]
    for other in again:
        deployed.assert_completed(other)
    wait_until(lambda: len(deployed.stack.of_role("runner")) == 2, "each slot has one runner again")


def processes_of(deployed: Deployment, slot_id: str) -> tuple[psutil.Process, psutil.Process]:
    """The Celery worker of a slot and its runner."""
    worker = next(found for found in deployed.stack.of_role("celery") if slot_id in found.cmdline())
    return worker, next(found for found in deployed.stack.of_role("runner") if found.ppid() == worker.pid)


@contextmanager
def frozen(deployed: Deployment, *victims: psutil.Process) -> Iterator[None]:
    """Freeze processes for the block, at a moment when none of them holds SQLite's lock: no other process could write
    then, and so not record that they are lost.
    """
    try:
        while True:
            for victim in victims:
                victim.suspend()
            if can_be_written(deployed, within_seconds=2.0):
                break
            for victim in victims:
                victim.resume()
        yield
    finally:
        for victim in victims:
            with suppress(psutil.NoSuchProcess):  # woken by the test, it may have been killed since
                victim.resume()


def can_be_written(deployed: Deployment, *, within_seconds: float) -> bool:
    """Whether the database's two locks become free: the one that writers queue for, and SQLite's own."""
    path = make_url(deployed.settings.resolved_database_url).database
    assert path is not None
    deadline = time.monotonic() + within_seconds
    with Path(f"{path}-turn").open("a") as turn, closing(sqlite3.connect(path, timeout=0.0)) as connection:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                connection.execute("BEGIN IMMEDIATE")
            except (BlockingIOError, sqlite3.OperationalError):
                fcntl.flock(turn, fcntl.LOCK_UN)
                time.sleep(0.01)  # flock waits either without a limit or not at all
                continue
            connection.rollback()
            return True
    return False


def idle(candidate: psutil.Process) -> Callable[[], bool]:
    """A condition: the process has used no processor time for half a second."""
    spent_seconds, since = -1.0, 0.0

    def is_idle() -> bool:
        nonlocal spent_seconds, since
        times = candidate.cpu_times()
        if times.user + times.system != spent_seconds:
            spent_seconds, since = times.user + times.system, time.monotonic()
        return time.monotonic() - since > 0.5

    return is_idle


def test_two_schedulers_have_one_leader_and_one_follows_the_other(deployed: Deployment) -> None:
    spec = spec_of(deployed)
    expected = expected_results(deployed, spec)
    with second_scheduler(deployed) as (other, client):
        leader = leader_of(deployed)
        job_id = client.submit(spec)["id"]
        deployed.assert_completed(job_id)
        assert leader_of(deployed) == leader
        planned = ["job.submitted", "job.queued", "job.finalizing", "job.completed"]
        assert [event.name for event in deployed.records.events(job_id, *planned)] == planned
        assert deployed.stack.results(job_id) == expected

        assert deployed.stack.up is not None
        deployed.stack.up.send_signal(signal.SIGSTOP)  # so that it does not start the killed one again at once
        try:
            killed = next(found for found in deployed.stack.of_role("scheduler"))
            assert killed.pid != other.pid
            killed.kill()
            job_id = client.submit(spec)["id"]
            assert client.wait(job_id, timeout_seconds=300)["state"] == "completed"
            assert leader_of(deployed) != leader
        finally:
            deployed.stack.up.send_signal(signal.SIGCONT)
        deployed.assert_completed(job_id)
        assert deployed.stack.results(job_id) == expected
    wait_until(lambda: deployed.stack.of_role("scheduler"), "the killed one is back")
    deployed.completed(spec)


@contextmanager
def second_scheduler(deployed: Deployment) -> Iterator[tuple[subprocess.Popen[bytes], StokerClient]]:
    """Another API with scheduler, as `stoker serve` runs it, on the same database, Redis and store."""
    port = free_port()
    settings = deployed.settings
    environment = {
        **deployed.stack.environment,
        "STOKER_DATA_DIR": str(deployed.folder / "second"),
        "STOKER_DATABASE_URL": settings.resolved_database_url,
        "STOKER_REDIS_URL": settings.resolved_redis_url,
        "STOKER_STORE_URL": settings.resolved_store_url,
        "STOKER_PORT": str(port),
        "STOKER_INPUT_ROOTS": '["/"]',
        "STOKER_OUTPUT_ROOTS": '["/"]',
    }
    with (deployed.folder / "second.log").open("wb") as log:
        started = process.spawn(python_module("scheduler.api.serve"), env=environment, stdout=log, stderr=log)
    key = settings.local_key_path.read_text().strip()
    try:
        with StokerClient(f"http://127.0.0.1:{port}", key, retry_seconds=60) as client:
            assert client.jobs_page(limit=1)["object"] == "list"
            yield started, client
    finally:
        assert process.end(started, 60.0) == 0
