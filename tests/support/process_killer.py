"""Kill random processes of a running stack, and check afterwards what its tables say about a job."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

import psutil
import redis
from sqlalchemy import ColumnElement, func, select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import LIVE_LEASE_STATES, ChunkState
from jobs.db.tables import Chunk, Lease, ResultRecord
from tests.conftest import wait_until
from tests.support.stack import Stack


class ProcessKiller(threading.Thread):
    """Kills a random process with -9 after each pause, and empties Redis once.

    On a slow machine, where no chunk was done since the last kill, it waits a little longer: killing processes faster
    than they can start would only show how slow the machine is.
    """

    def __init__(
        self,
        target: Stack,
        seed: int,
        num_done: Callable[[], int],
        *,
        roles: Sequence[str],
        pause_seconds: float = 2.0,
        longest_pause_seconds: float = 8.0,
        is_enough: Callable[[Sequence[str]], bool] = lambda _: False,
    ) -> None:
        """
        Args:
            target: The stack whose processes are killed.
            seed: Seed of the choice of processes.
            num_done: Returns the number of chunks that are done.
            roles: Roles of the processes to kill. Each role comes once before any comes again.
            pause_seconds: Time between two kills.
            longest_pause_seconds: Time between two kills if no chunk is done meanwhile.
            is_enough: Called with the roles of the processes killed so far; True ends the thread, as `stopped` does.
        """
        super().__init__(name="process-killer")
        self.target, self.random, self.num_done, self.roles = target, random.Random(seed), num_done, roles
        self.pause_seconds, self.longest_pause_seconds = pause_seconds, longest_pause_seconds
        self.is_enough = is_enough
        self.stopped = threading.Event()
        self.kills: list[str] = []
        self.flushed = False

    def run(self) -> None:
        """Kill until stopped."""
        roles: list[str] = []  # each role once before any comes again, so that every run has every fault
        while not self.is_enough(self.kills) and not self._wait():
            roles = roles or self.random.sample(self.roles, k=len(self.roles))
            role = roles.pop()
            if not self.flushed and len(self.kills) >= 3:
                self.flushed = self._flush()
            victims = self.target.of_role(role)
            if victims:
                victim = self.random.choice(victims)
                try:
                    victim.kill()
                except psutil.NoSuchProcess:
                    continue  # it ended with an earlier victim
                self.kills.append(role)

    def _wait(self) -> bool:
        """Wait for the next kill. Returns whether the thread is to stop instead."""
        before, latest = self.num_done(), time.monotonic() + self.longest_pause_seconds
        while not self.stopped.wait(self.pause_seconds):
            if self.num_done() > before or time.monotonic() > latest:
                return False
        return True

    def _flush(self) -> bool:
        socket = Settings(data_dir=self.target.data_dir).redis_socket
        with redis.Redis(unix_socket_path=str(socket)) as client:
            try:
                return bool(client.flushall())
            except redis.RedisError:
                return False  # it is being restarted; the next kill tries again


def num_chunks_done(database_url: str) -> int:
    """Chunks of all jobs whose results are in."""
    return _num_chunks(database_url, col(Chunk.state) == ChunkState.DONE)


def num_chunks_lost(database_url: str) -> int:
    """Chunks of all jobs that a killed process held, so that they were computed again."""
    return _num_chunks(database_url, col(Chunk.attempt) > 1)


def _num_chunks(database_url: str, condition: ColumnElement[bool]) -> int:
    db = Database(database_url)
    try:
        with db.read() as session:
            return session.scalar(select(func.count()).select_from(Chunk).where(condition)) or 0
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
