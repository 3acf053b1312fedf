"""The pools beside the service's loop: failures are retried, and what cannot be done is given up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from jobs.errors import InvalidOutput, ServiceUnavailable, StokerError
from jobs.retries import RetryPolicy
from scheduler.control.retry_pool import RetryPool
from tests.conftest import wait_until


class Ledger:
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
def told() -> Ledger:
    return Ledger()


@pytest.fixture
def make(told: Ledger) -> Iterator[Make]:
    pools: list[RetryPool] = []

    def make_pool(work: Callable[[str], None], *, num_threads: int = 2, max_tries: int = 100) -> RetryPool:
        def tried(job_id: str) -> None:
            told.tried.append(job_id)
            work(job_id)

        pool = RetryPool(
            "testing",
            tried,
            num_threads=num_threads,
            retry_policy=RetryPolicy(max_tries, 0.001, 0.002),
            on_failure=told.trouble,
            on_give_up=told.give_up,
            on_done=told.done,
        )
        pools.append(pool)
        return pool

    yield make_pool
    for pool in pools:
        pool.close(10.0)


def sweep(pool: RetryPool, *job_ids: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """A condition to wait for that offers the jobs again each time it is asked, as the service does."""

    def until(condition: Callable[[], object]) -> Callable[[], object]:
        def ask() -> object:
            if condition():
                return True
            pool.offer(job_ids)
            return False

        return ask

    return until


def test_each_job_is_worked_on_once_at_a_time(make: Make, told: Ledger) -> None:
    go_on = threading.Event()
    pool = make(lambda _: go_on.wait(300))
    for _ in range(5):
        pool.offer(["a", "b"])
    wait_until(lambda: len(told.tried) == 2, "both are begun")
    go_on.set()
    wait_until(lambda: told.num_done == 2, "both are done")
    assert sorted(told.tried) == ["a", "b"]


def test_an_error_of_the_machine_is_tried_again_and_told_once(make: Make, told: Ledger) -> None:
    def work(_: str) -> None:
        if len(told.tried) < 4:
            raise ServiceUnavailable("the store is full")

    pool = make(work)
    wait_until(sweep(pool, "a")(lambda: told.num_done == 1), "the job is done in the end")
    assert told.troubles == ["a: the store is full"]
    assert pool.num_waiting == 0


def test_what_trying_again_cannot_help_is_given_up_at_once(make: Make, told: Ledger) -> None:
    def work(_: str) -> None:
        raise InvalidOutput("the folder is gone")

    pool = make(work)
    pool.offer(["a"])
    wait_until(lambda: told.num_done == 1, "the job is given up")
    assert (told.given_up, told.tried) == (["a: the folder is gone"], ["a"])


def test_patience_ends(make: Make, told: Ledger) -> None:
    def work(_: str) -> None:
        raise ServiceUnavailable("away")

    pool = make(work, max_tries=3)
    wait_until(sweep(pool, "a")(lambda: told.given_up), "the job is given up")
    assert told.tried == ["a"] * 3


def test_a_fault_of_ours_is_logged_and_ends_only_its_own_job(
    make: Make, told: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    def work(job_id: str) -> None:
        if job_id == "bad":
            raise ZeroDivisionError

    pool = make(work)
    with caplog.at_level(logging.ERROR):
        wait_until(sweep(pool, "bad", "good")(lambda: told.given_up), "the bad job is given up")
    assert "good" in told.tried
    assert told.tried.count("bad") == 5
    assert "ZeroDivisionError" in caplog.text


def test_a_job_that_could_not_be_given_up_is_laid_again(make: Make, told: Ledger) -> None:
    """Else a job would stay as it is for ever because the database was away for a moment."""
    told.is_away = True

    def work(_: str) -> None:
        raise InvalidOutput("the folder is gone")

    pool = make(work)
    wait_until(sweep(pool, "a")(lambda: len(told.tried) >= 2), "it is tried again")
    told.is_away = False
    wait_until(sweep(pool, "a")(lambda: told.given_up), "it is given up")


def test_a_closed_bench_begins_nothing_more(make: Make, told: Ledger) -> None:
    go_on = threading.Event()
    pool = make(lambda _: go_on.wait(300), num_threads=1)
    pool.offer(["a", "b", "c"])
    wait_until(lambda: told.tried, "the first is begun")
    pool.close(0.0)
    go_on.set()
    pool.close(60.0)
    assert told.tried == ["a"]
