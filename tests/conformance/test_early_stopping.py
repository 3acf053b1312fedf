"""Sweeps that end trials early, on both databases: decided once, from what was recorded, whoever dies meanwhile."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import pytest
from sqlalchemy import select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Job, Rung
from jobs.errors import RunnerDied
from jobs.ledger import attempts, overdue, planning
from jobs.ledger import jobs as job_ledger
from jobs.ledger.leasing import leases
from jobs.ledger.records import history
from scheduler.control.finalizer import finalize_job
from scheduler.control.planning.arrays import plan_any
from scheduler.control.retention import retain
from tests.support.arrays import Arrays, finish, sweep, train
from tests.support.blocked_process import kill_inside
from tests.support.ledger import hold, make_slots, set_job

ASHA = {"method": "asha", "min_steps": 10}
TOTAL = 100


class Trials:
    """The trials of a sweep, each with a lease on a slot of its own."""

    def __init__(self, system: Arrays, number: int, **changed: object) -> None:
        self.system = system
        self.sweep_id = sweep(system, number, **{"early_stopping": ASHA, "max_parallel": number, **changed})
        make_slots(system.db, system.settings, *(f"s{place}" for place in range(number)))
        self.jobs = system.ready(self.sweep_id)
        self.leases = [self.start(place) for place in range(number)]

    def start(self, place: int) -> str:
        if self.system.look(self.jobs[place].id).state == JobState.VALIDATING:
            planning.enqueue(self.system.db, self.jobs[place].id)
        lease_id = hold(self.system.db, self.jobs[place].id, f"s{place}")
        attempts.begin(self.system.db, lease_id, resumed_step=0)
        return lease_id

    def advance(self, place: int, *points: tuple[int, float], step: int | None = None) -> bool:
        """Record values of the metric; whether the trial is to end."""
        return attempts.advance(
            self.system.db,
            self.leases[place],
            step=points[-1][0] if step is None else step,
            total_steps=TOTAL,
            points=[(at, "eval_loss", value) for at, value in points],
        )

    def pruned_step(self, place: int) -> int | None:
        return self.system.look(self.jobs[place].id).pruned_step

    def events(self, place: int) -> list[dict[str, object]]:
        with self.system.db.read() as session:
            found = list(history.events(session, self.jobs[place].id))
        return [event.data for event in found if event.name == "job.pruned"]

    def finish(self, place: int, step: int) -> None:
        """Conclude the training of a trial, as its runner does."""
        attempts.finish(self.system.db, self.leases[place], [], step=step)
        leases.release(self.system.db, self.leases[place], "drained")
        finalize_job(self.system.db, self.system.store, self.system.settings, self.jobs[place].id)

    def rungs(self) -> list[tuple[int, float | None]]:
        with self.system.db.read() as session:
            ordered = select(Rung).order_by(col(Rung.step), col(Rung.value))
            return [(rung.step, rung.value) for rung in session.scalars(ordered)]


@pytest.fixture
def system(database: Database, settings: Settings) -> Arrays:
    return Arrays(database, settings)


def ends(values: Sequence[float], *, factor: int = 3) -> list[bool]:
    """Which of the trials with these values end, in plain words: all but the best third so far, and at least one."""
    found = []
    for place, value in enumerate(values):
        so_far = sorted(values[: place + 1])
        found.append(value not in so_far[: max(1, len(so_far) // factor)])
    return found


def test_only_the_best_of_those_that_came_so_far_go_on(system: Arrays) -> None:
    values = [0.5, 0.6, 0.4, 0.3, 0.9, 0.35, 0.2, 0.32, 0.31]
    trials = Trials(system, 9)
    told = [trials.advance(place, (10, value)) for place, value in enumerate(values)]
    assert told == ends(values)
    assert [trials.pruned_step(place) for place in range(9)] == [10 if end else None for end in told]
    (event,) = trials.events(1)
    assert event["reason"] == ("its eval_loss at step 10 is not among the best 1 of the 2 trials that came to step 10")
    assert trials.events(0) == []


def test_steps_between_two_comparisons_are_not_compared(system: Arrays) -> None:
    trials = Trials(system, 2, mode="max")
    assert not trials.advance(0, (5, 0.9))
    assert not trials.advance(1, (5, 0.1))
    assert not trials.advance(0, (12, 0.8), (20, 0.5))
    assert not trials.advance(1, (12, 0.9), (29, 0.1))
    assert trials.rungs() == [(10, 0.8), (10, 0.9)]
    assert not trials.advance(0, (30, 0.7), (99, 0.6))
    assert trials.advance(1, (30, 0.6))
    assert trials.rungs() == [(10, 0.8), (10, 0.9), (30, 0.6), (30, 0.7), (90, 0.6)]


def test_the_last_step_is_not_compared(system: Arrays) -> None:
    trials = Trials(system, 2)
    assert not trials.advance(0, (TOTAL, 0.1))
    assert not trials.advance(1, (TOTAL, 0.9))
    assert trials.rungs() == []


def test_a_value_that_is_not_finite_is_worse_than_any_other(system: Arrays) -> None:
    trials = Trials(system, 3)
    assert not trials.advance(0, (10, math.nan))
    assert not trials.advance(1, (10, 1e300))
    assert trials.advance(2, (10, math.inf))


def test_a_repeated_step_is_not_compared_again(system: Arrays) -> None:
    trials = Trials(system, 3)
    assert not trials.advance(0, (10, 0.5))
    assert not trials.advance(1, (10, 0.4))
    assert trials.advance(2, (10, 0.6))
    for place in (0, 2):
        leases.crash(
            system.db, trials.leases[place], RunnerDied("gone"), computing=None, retries=Settings(retry_seconds=0.001)
        )
    overdue.requeue_idle(system.db)
    for place in (0, 2):
        trials.leases[place] = trials.start(place)
    assert trials.advance(2, step=0), "it was decided before"
    assert not trials.advance(0, step=0)
    assert not trials.advance(0, (10, 0.5)), "it went on before, though it would not now"
    assert trials.advance(2, (10, 0.6))
    assert len(trials.events(2)) == 1
    assert trials.rungs() == [(10, 0.4), (10, 0.5), (10, 0.6)]


def test_a_runner_killed_while_it_records_decides_nothing(system: Arrays) -> None:
    trials = Trials(system, 2)
    assert not trials.advance(0, (10, 0.1))
    kill_inside(
        system.db,
        "import jobs.ledger.attempts as attempts",
        "attempts.early_stopping.prune",
        f"attempts.advance(database, {trials.leases[1]!r}, step=10, total_steps=100, points=[(10, 'eval_loss', 0.5)])",
    )
    assert (trials.pruned_step(1), trials.events(1), trials.rungs()) == (None, [], [(10, 0.1)])
    assert trials.advance(1, (10, 0.5))
    assert len(trials.events(1)) == 1


def test_trials_that_come_at_the_same_time_are_compared_one_by_one(system: Arrays) -> None:
    number = 8
    trials = Trials(system, number)
    told: dict[int, bool] = {}
    start = threading.Barrier(number)

    def work(place: int) -> None:
        start.wait()
        told[place] = trials.advance(place, (10, 0.1 * place))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trials.rungs()) == number
    assert not told[0], "the best one goes on in any order"
    assert told == {place: trials.pruned_step(place) is not None for place in range(number)}
    assert all(len(trials.events(place)) == told[place] for place in range(number))


def test_a_trial_that_ends_early_completes_and_may_win(system: Arrays) -> None:
    trials = Trials(system, 3)
    assert not trials.advance(0, (10, 0.2))
    assert trials.advance(1, (10, 0.3), step=11)
    trials.advance(1, (12, 0.1))
    trials.finish(1, 12)
    assert (system.look(trials.jobs[1].id).state, system.look(trials.jobs[1].id).num_rows) == ("completed", 12)
    trials.advance(0, (TOTAL, 0.5))
    trials.finish(0, TOTAL)
    leases.release(system.db, trials.leases[2], "stopped")
    train(system, trials.jobs[2], 0.9)
    assert (system.look(trials.sweep_id).num_done, system.look(trials.sweep_id).num_failed) == (3, 0)
    table = finish(system, trials.sweep_id)
    assert (table["winner"]["index"], table["winner"]["pruned_step"]) == (1, 10)
    assert [trial["pruned_step"] for trial in table["trials"]] == [None, 10, None]


def test_a_retry_is_compared_with_the_trials_before_it(system: Arrays) -> None:
    trials = Trials(system, 3)
    assert not trials.advance(0, (10, 0.2))
    trials.finish(0, TOTAL)
    job_ledger.cancel(system.db, trials.sweep_id)
    for lease_id in trials.leases[1:]:
        leases.release(system.db, lease_id, "stopped")
    retry = job_ledger.retry(system.db, trials.sweep_id).id
    plan_any(system.db, system.store, system.settings, retry)
    system.fill(retry)
    trials.jobs = system.ready(retry)
    trials.leases = [trials.start(place) for place in range(2)]
    assert trials.advance(0, (10, 0.3))
    assert not trials.advance(1, (10, 0.1))


def test_a_retried_trial_is_not_compared_with_its_own_earlier_run(system: Arrays) -> None:
    trials = Trials(system, 1)
    assert not trials.advance(0, (10, 0.2))
    job_ledger.cancel(system.db, trials.sweep_id)
    leases.release(system.db, trials.leases[0], "stopped")
    retry = job_ledger.retry(system.db, trials.sweep_id).id
    plan_any(system.db, system.store, system.settings, retry)
    system.fill(retry)
    trials.jobs = system.ready(retry)
    trials.leases = [trials.start(0)]
    assert not trials.advance(0, (10, 0.3)), "it is the only trial"


def test_what_was_compared_is_deleted_with_the_sweep(system: Arrays) -> None:
    trials = Trials(system, 1)
    trials.advance(0, (10, 0.2))
    trials.finish(0, TOTAL)
    finish(system, trials.sweep_id)
    for job in (*system.children(trials.sweep_id), system.look(trials.sweep_id)):
        set_job(system.db, job.id, ended_at=1.0)
    for _ in range(2):
        retain(system.db, system.store, system.settings.model_copy(update={"job_days": 1.0}))
    with system.db.read() as session:
        assert list(session.scalars(select(Job))) == []
    assert trials.rungs() == []
