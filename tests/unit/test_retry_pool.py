"""The retry pools of the service: failures are retried, and work that cannot succeed is given up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from jobs.errors import InvalidOutput, ServiceUnavailable, StokerError
from jobs.retries import RetryPolicy
from scheduler.control.retry_pool import PoolGroup, RetryPool
from tests.conftest import wait_until


class Reports:
    """What a pool reported."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.troubles: list[str] = []
        self.given_up: list[str] = []
        self.num_done = 0
        self.is_away = False

    def trouble(self, job_id: str, error: StokerError) -> None:
        self.troubles.append(f"{job_id}: {error.message}")

    def give_up(self, job_id: str, error: StokerError) -> None:
        if self.is_away:
            raise ServiceUnavailable("the database is away")
        self.given_up.append(f"{job_id}: {error.message}")

    def done(self) -> None:
        self.num_done += 1


Make = Callable[..., RetryPool]


@pytest.fixture
def reported() -> Reports:
    return Reports()


@pytest.fixture
def make(reported: Reports) -> Iterator[Make]:
    pools: list[RetryPool] = []

    def make_pool(work: Callable[[str], None], *, num_threads: int = 2, max_tries: int = 100) -> RetryPool:
        def tried(job_id: str) -> None:
            reported.tried.append(job_id)
            work(job_id)

        pool = RetryPool(
            "testing",
            tried,
            num_threads=num_threads,
            retry_policy=RetryPolicy(max_tries, 0.001, 0.002),
            on_failure=reported.trouble,
            on_give_up=reported.give_up,
            on_done=reported.done,
        )
        pools.append(pool)
        return pool

    yield make_pool
    for pool in pools:
        close(pool, 10.0)


def close(pool: RetryPool, seconds: float) -> None:
    pool.stop()
    pool.join(time.monotonic() + seconds)


def sweep(pool: RetryPool, *job_ids: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """A condition to wait for that offers the jobs again each time it is checked, as the service does."""

    def until(condition: Callable[[], object]) -> Callable[[], object]:
        def ask() -> object:
            if condition():
                return True
            pool.offer(job_ids)
            return False

        return ask

    return until


def test_each_job_is_worked_on_once_at_a_time(make: Make, reported: Reports) -> None:
    go_on = threading.Event()
    pool = make(lambda _: go_on.wait(300))
    for _ in range(5):
        pool.offer(["a", "b"])
    wait_until(lambda: len(reported.tried) == 2, "both are begun")
    go_on.set()
    wait_until(lambda: reported.num_done == 2, "both are done")
    assert sorted(reported.tried) == ["a", "b"]


def test_an_error_of_the_machine_is_retried_and_reported_once(make: Make, reported: Reports) -> None:
    def work(_: str) -> None:
        if len(reported.tried) < 4:
            raise ServiceUnavailable("the store is full")

    pool = make(work)
    wait_until(sweep(pool, "a")(lambda: reported.num_done == 1), "the job is done in the end")
    assert reported.troubles == ["a: the store is full"]
    assert pool.num_waiting == 0


def test_an_error_that_no_retry_helps_is_given_up_at_once(make: Make, reported: Reports) -> None:
    def work(_: str) -> None:
        raise InvalidOutput("the folder is gone")

    pool = make(work)
    pool.offer(["a"])
    wait_until(lambda: reported.num_done == 1, "the job is given up")
    assert (reported.given_up, reported.tried) == (["a: the folder is gone"], ["a"])


def test_a_job_is_given_up_after_the_last_try(make: Make, reported: Reports) -> None:
    def work(_: str) -> None:
        raise ServiceUnavailable("away")

    pool = make(work, max_tries=3)
    wait_until(sweep(pool, "a")(lambda: reported.given_up), "the job is given up")
    assert reported.tried == ["a"] * 3


def test_an_unexpected_error_is_logged_and_ends_only_its_own_job(
    make: Make, reported: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    def work(job_id: str) -> None:
        if job_id == "bad":
            raise ZeroDivisionError

    pool = make(work)
    with caplog.at_level(logging.ERROR):
        wait_until(sweep(pool, "bad", "good")(lambda: reported.given_up), "the bad job is given up")
    assert "good" in reported.tried
    assert reported.tried.count("bad") == 5
    assert "ZeroDivisionError" in caplog.text


def test_a_job_that_could_not_be_given_up_is_queued_again(make: Make, reported: Reports) -> None:
    """Otherwise a job would stay in its state for ever because the database was away for a moment."""
    reported.is_away = True

    def work(_: str) -> None:
        raise InvalidOutput("the folder is gone")

    pool = make(work)
    wait_until(sweep(pool, "a")(lambda: len(reported.tried) >= 2), "it is tried again")
    reported.is_away = False
    wait_until(sweep(pool, "a")(lambda: reported.given_up), "it is given up")


def test_a_closed_pool_starts_no_more_work(make: Make, reported: Reports) -> None:
    go_on = threading.Event()
    pool = make(lambda _: go_on.wait(300), num_threads=1)
    pool.offer(["a", "b", "c"])
    wait_until(lambda: reported.tried, "the first is begun")
    close(pool, 0.0)
    go_on.set()
    close(pool, 60.0)
    assert reported.tried == ["a"]


def test_pools_of_a_group_stop_together_and_share_one_deadline(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    deadlines: list[float] = []
    with PoolGroup() as group:
        for name in ("first", "second"):
            pool = group.add(make(lambda _: None), 7.0)
            monkeypatch.setattr(pool, "stop", partial(done.append, f"stop {name}"))
            monkeypatch.setattr(pool, "join", deadlines.append)
        group.stop()
        assert done == ["stop first", "stop second"]
        stopped_before = time.monotonic()
    assert len(deadlines) == 2
    assert deadlines[0] == deadlines[1] <= stopped_before + 7.0
