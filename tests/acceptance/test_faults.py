"""The promise itself: whatever is killed while a job runs, every row has exactly one result, and the right one."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from sqlalchemy import func, select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import LIVE_LEASE_STATES, ChunkState
from jobs.db.tables import Chunk, Lease, ResultRecord
from tests.conftest import wait_until
from tests.support import tiny
from tests.support.rows import embedding_spec, varied_rows, write_rows
from tests.support.stack import QUICK, Stack, bare_stack, stack

SHOT_AT = ("celery", "runner", "scheduler", "redis")
MOST_STORMY_JOBS = 10


class Sniper(threading.Thread):
    """Kills a random process with -9 every two seconds, and empties Redis once.

    On a machine so slow that nothing was done since the last shot it holds its fire a little longer: processes that are
    killed faster than they can start would only show how slow the machine is.
    """

    def __init__(self, target: Stack, seed: int, num_done: Callable[[], int]) -> None:
        super().__init__(name="sniper")
        self.target, self.random, self.num_done = target, random.Random(seed), num_done
        self.stopped = threading.Event()
        self.kills: list[str] = []
        self.flushed = False

    def run(self) -> None:
        """Shoot until stopped."""
        bag: list[str] = []  # each role once before any comes again, so that every run meets every fault
        while not self._rest():
            bag = bag or self.random.sample(SHOT_AT, k=len(SHOT_AT))
            role = bag.pop()
            if not self.flushed and len(self.kills) >= 3:
                self.flushed = self._flush()
            victims = self.target.of_role(role)
            if victims:
                victim = self.random.choice(victims)
                try:
                    victim.kill()
                except psutil.NoSuchProcess:
                    continue  # it fell with an earlier victim
                self.kills.append(role)

    def _rest(self) -> bool:
        """Wait for the next shot. Returns whether there is to be none."""
        before, mercy = self.num_done(), time.monotonic() + 8.0
        while not self.stopped.wait(2.0):
            if self.num_done() > before or time.monotonic() > mercy:
                return False
        return True

    def _flush(self) -> bool:
        socket = Settings(data_dir=self.target.data_dir).redis_socket
        with redis.Redis(unix_socket_path=str(socket)) as client:
            try:
                return bool(client.flushall())
            except redis.RedisError:
                return False  # it is being restarted; the next shot tries again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "num_rows"),
    [
        ("sqlite", 5_000),
        pytest.param("sqlite", 20_000, marks=pytest.mark.soak),
        pytest.param("postgresql", 20_000, marks=pytest.mark.soak),
    ],
)
def test_every_row_survives_a_kill_every_two_seconds(
    kind: str, num_rows: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment = dict(QUICK)
    if kind == "postgresql":
        environment["STOKER_DATABASE_URL"] = request.getfixturevalue("postgres_url")
    rows, model = tmp_path / "rows.jsonl", tiny.tiny_encoder(tmp_path / "model")
    write_rows(rows, varied_rows(num_rows))
    with stack(tmp_path / "data", slots=2, **environment) as running:
        calm = running.submit(embedding_spec(model, rows))
        assert running.await_end(calm, 400.0)["state"] == "completed"
        expected = running.results(calm)

        url = environment.get("STOKER_DATABASE_URL") or Settings(data_dir=running.data_dir).resolved_database_url
        seed = random.SystemRandom().randrange(2**32)
        print(f"seed {seed}")
        sniper = Sniper(running, seed, lambda: num_chunks_done(url))
        sniper.start()
        try:
            stormy: list[dict[str, Any]] = []
            # A fast machine does a job before every fault was met; a slow one meets them all in one.
            while len(stormy) < MOST_STORMY_JOBS and len(set(sniper.kills)) < len(SHOT_AT):
                stormy.append(running.await_end(running.submit(embedding_spec(model, rows)), 600.0))
        finally:
            sniper.stopped.set()
            sniper.join()
        print(f"{len(sniper.kills)} kills: {sniper.kills}")
        assert len(set(sniper.kills)) == len(SHOT_AT), "the jobs were too short to meet every fault"
        assert [result["row_index"] for result in expected] == list(range(num_rows))
        assert [result["key"] for result in expected] == [f"r{row}" for row in range(num_rows)]
        for job in stormy:
            assert job["state"] == "completed", job
            assert job["counts"] == {"total": num_rows, "done": num_rows, "failed": 0}
            assert running.results(job["id"]) == expected, "one result for each row, equal to the last bit"
            assert_invariants(url, job["id"], num_rows)


def num_chunks_done(database_url: str) -> int:
    """Chunks of all jobs whose results are in."""
    db = Database(database_url)
    try:
        with db.read() as session:
            return session.scalar(select(func.count()).where(col(Chunk.state) == ChunkState.DONE)) or 0
    finally:
        db.close()


def assert_invariants(database_url: str, job_id: str, num_rows: int) -> None:
    """What the tables must say after any fault."""
    db = Database(database_url)
    with db.read() as session:
        count = select(func.count()).where(col(ResultRecord.job_id) == job_id)
        assert session.scalar(count) == num_rows
        states = select(col(Chunk.state)).where(col(Chunk.job_id) == job_id).distinct()
        assert session.scalars(states).all() == [ChunkState.DONE]
        live = select(Lease).where(col(Lease.job_id) == job_id, col(Lease.state).in_(LIVE_LEASE_STATES))

    def none_is_live() -> bool:
        with db.read() as session:
            return not session.scalars(live).all()

    wait_until(none_is_live, "no lease outlives its job")
    db.close()


@pytest.mark.slow
@pytest.mark.soak
def test_drawn_texts_are_the_same_whatever_is_killed(tmp_path: Path) -> None:
    rows, model = tmp_path / "rows.jsonl", tiny.tiny_causal_lm(tmp_path / "model")
    write_rows(rows, varied_rows(400))
    spec = {
        "task": "text-generation",
        "model": str(model),
        "input": {"path": str(rows), "key": "id"},
        "parameters": {"temperature": 1.0, "max_new_tokens": 40, "stop": "quick"},
        "batching": {"chunk_rows": 20},
    }
    with stack(tmp_path / "data", slots=2, **QUICK) as running:
        calm = running.submit(spec)
        assert running.await_end(calm, 200.0)["state"] == "completed"
        stormy = running.submit(spec)
        url = Settings(data_dir=running.data_dir).resolved_database_url
        for role in ("runner", "celery", "runner"):
            before = num_chunks_done(url)
            wait_until(lambda before=before: num_chunks_done(url) > before, "a chunk more", 300.0)
            for victim in running.of_role(role):
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
        job = running.await_end(stormy, 300.0)
        assert job["counts"] == {"total": 400, "done": 400, "failed": 0}, job
        assert running.results(stormy) == running.results(calm)


@pytest.mark.soak  # tests/integration/test_embedded.py does it of a stack at work
def test_the_whole_stack_dies_with_stoker_up(tmp_path: Path) -> None:
    with bare_stack(tmp_path / "data", slots=1, **QUICK) as running:
        running.start()
        assert running.of_role("runner")
        running.kill()
        wait_until(lambda: not running.processes(), "every process of the stack is gone")
        running.start()
        assert running.stop() == 0
        assert not running.processes()
