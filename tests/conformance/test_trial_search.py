"""Sweeps that search by TPE, on both databases: each proposal is made once and recorded, whoever dies meanwhile."""

from __future__ import annotations

import threading

import pytest

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Job
from jobs.ledger import jobs as job_ledger
from jobs.specs.array_spec import parse_submission
from scheduler.control.planning.arrays import plan_any
from tests.support.arrays import Arrays, finish, sweep, sweep_document, train
from tests.support.blocked_process import kill_inside


@pytest.fixture
def system(database: Database, settings: Settings) -> Arrays:
    return Arrays(database, settings)


def rate_of(trial: Job) -> float:
    """The learning rate of a trial, which its spec and its record both have."""
    assert trial.trial_values == {"lr": trial.spec["options"]["learning_rate"]}
    return float(trial.trial_values["lr"])


def run(system: Arrays, sweep_id: str, number: int) -> list[float]:
    """Complete trials one by one; the best learning rate is 0.7. Returns those of the trials."""
    rates = []
    for _ in range(number):
        trial, *_ = system.ready(sweep_id)
        rates.append(rate_of(trial))
        train(system, trial, (rates[-1] - 0.7) ** 2)
        system.fill(sweep_id)
    return rates


def test_proposals_come_close_to_the_best_and_are_always_the_same(system: Arrays) -> None:
    sweep_id = sweep(system, 30, search="tpe", max_parallel=1)
    rates = run(system, sweep_id, 30)
    drawn = run(system, sweep(system, 30, max_parallel=1), 30)
    assert sum(abs(rate - 0.7) for rate in rates[15:]) < 0.75 * sum(abs(rate - 0.7) for rate in drawn[15:])
    assert len(set(rates)) == 30
    assert run(system, sweep(system, 12, search="tpe", max_parallel=1), 12) == rates[:12]
    assert run(system, sweep(system, 2, search="tpe", max_parallel=1, seed=1), 2) != rates[:2]
    table = finish(system, sweep_id)
    assert [trial["values"]["lr"] for trial in table["trials"]] == rates
    assert abs(table["winner"]["values"]["lr"] - 0.7) == min(abs(rate - 0.7) for rate in rates)


def test_a_trial_is_proposed_only_when_there_is_a_place_for_it(system: Arrays) -> None:
    sweep_id = sweep(system, 40, search="tpe", max_parallel=4)
    assert len(system.children(sweep_id)) == len(system.ready(sweep_id)) == 4
    assert system.to_fill() == []
    run(system, sweep_id, 11)
    train(system, system.ready(sweep_id)[0], 0.1)
    assert system.to_fill() == [sweep_id]
    system.fill(sweep_id)
    ready = system.ready(sweep_id)
    assert len(system.children(sweep_id)) == 12 + 4
    assert len({rate_of(trial) for trial in ready}) == 4, "trials at the same time differ"


def test_a_scheduler_killed_while_it_makes_a_trial_loses_none(system: Arrays) -> None:
    sweep_id = sweep(system, 16, search="tpe", max_parallel=2)
    run(system, sweep_id, 11)
    before = [trial.id for trial in system.children(sweep_id)]
    train(system, system.ready(sweep_id)[0], 0.1)
    kill_inside(
        system.db,
        "import jobs.ledger.groups.arrays as arrays",
        "arrays.jobs.add",
        f"""
from jobs.config.settings import Settings
from jobs.data.store import Store
from scheduler.control.planning.arrays import fill_array
settings = Settings(data_dir={str(system.settings.data_dir)!r})
fill_array(database, Store(settings.resolved_store_url), settings, {sweep_id!r})
""",
    )
    assert [trial.id for trial in system.children(sweep_id)] == before
    for _ in range(2):
        system.fill(sweep_id)
    trials = system.children(sweep_id)
    assert [trial.child_index for trial in trials] == list(range(14))
    assert len({rate_of(trial) for trial in trials}) == 14


def test_two_schedulers_propose_each_trial_once(system: Arrays) -> None:
    sweep_id = sweep(system, 24, search="tpe", max_parallel=3)
    ended = threading.Event()
    failures: list[str] = []

    def schedule() -> None:
        while not ended.is_set():
            for one in system.to_fill():
                system.fill(one)

    def work() -> None:
        while system.look(sweep_id).state == JobState.RUNNING:
            ready = system.ready(sweep_id)
            if len(ready) > 3:
                failures.append(f"{len(ready)} trials are ready")
            if ready:
                train(system, ready[0], (rate_of(ready[0]) - 0.7) ** 2)
        ended.set()

    threads = [threading.Thread(target=target) for target in (schedule, schedule, work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    trials = system.children(sweep_id)
    assert [trial.child_index for trial in trials] == list(range(24))
    assert len({rate_of(trial) for trial in trials}) == 24


def test_a_retry_has_the_values_that_its_trials_had(system: Arrays) -> None:
    sweep_id = sweep(system, 14, search="tpe", max_parallel=2)
    rates = run(system, sweep_id, 11)
    failed, running = system.ready(sweep_id)
    system.end(failed, completes=False)
    job_ledger.cancel(system.db, sweep_id)
    retry = job_ledger.retry(system.db, sweep_id).id
    plan_any(system.db, system.store, system.settings, retry)
    system.fill(retry)
    assert {trial.child_index: rate_of(trial) for trial in system.ready(retry)} == {
        one.child_index: rate_of(one) for one in (failed, running)
    }
    run(system, retry, 3)
    assert {trial["values"]["lr"] for trial in finish(system, retry)["trials"]} > set(rates)


def test_a_trial_that_is_no_spec_fails_with_values_of_its_own(system: Arrays) -> None:
    document = sweep_document(3, search="tpe", max_parallel=1)
    document["options"]["hidden"] = "${hidden}"
    document["sweep"]["parameters"]["hidden"] = {"low": -2, "high": -1, "integer": True}
    job_id = job_ledger.submit(system.db, parse_submission(document), project="p").id
    plan_any(system.db, system.store, system.settings, job_id)
    system.fill(job_id)
    trials = system.children(job_id)
    assert [trial.state for trial in trials] == [JobState.FAILED] * 3
    assert len({trial.trial_values["lr"] for trial in trials if trial.trial_values}) == 3
    assert system.look(job_id).state == JobState.FAILED
