"""Sweeps on both databases: which trial wins, what TPE proposes, and which trials end early, whoever dies meanwhile."""

from __future__ import annotations

import pytest

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.ledger import jobs as job_ledger
from scheduler.control.finalizer import finalize_job
from scheduler.control.planning.arrays import plan_any
from scheduler.control.retention import retain
from tests.support.arrays import Arrays, finish, sweep, train
from tests.support.ledger import set_job


@pytest.fixture
def system(database: Database, settings: Settings) -> Arrays:
    return Arrays(database, settings)


def test_the_best_trial_wins_and_its_files_are_those_of_the_sweep(system: Arrays) -> None:
    sweep_id = sweep(system, 5)
    trials = system.ready(sweep_id)
    assert len({trial.spec["options"]["learning_rate"] for trial in trials}) == 5
    train(system, trials[3], 0.5)
    train(system, trials[0], 0.1, 0.7)
    train(system, trials[1], 0.9, 0.5)
    train(system, trials[2], None)
    system.end(trials[4], completes=False)
    assert system.look(sweep_id).state == JobState.FINALIZING, "a trial that failed only cannot win"
    table = finish(system, sweep_id)
    assert (table["winner"]["index"], table["winner"]["job_id"], table["winner"]["eval_loss"]) == (1, trials[1].id, 0.5)
    assert [trial["index"] for trial in table["trials"]] == [0, 1, 2, 3]
    assert table["winner"]["values"]["lr"] == trials[1].spec["options"]["learning_rate"]
    with system.db.read() as session:
        made = {artifact.name: artifact.key for artifact in job_ledger.artifacts(session, sweep_id)}
    assert made["model/w"] == f"jobs/{trials[1].id}/w"
    assert set(made) == {"model/w", "sweep.json"}


def test_the_largest_value_wins_where_more_is_better(system: Arrays) -> None:
    sweep_id = sweep(system, 2, mode="max")
    first, second = system.ready(sweep_id)
    train(system, first, 0.9)
    train(system, second, 0.8)
    assert finish(system, sweep_id)["winner"]["index"] == 0


def test_a_sweep_without_a_trial_that_can_win_fails(system: Arrays) -> None:
    sweep_id = sweep(system, 2)
    first, second = system.ready(sweep_id)
    system.end(first, completes=False)
    train(system, second, None)
    finalize_job(system.db, system.store, system.settings, sweep_id)
    job = system.look(sweep_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "children_failed")
    assert job.error_message == "sweep.metric: no trial has recorded 'eval_loss'"
    failing = sweep(system, 1)
    system.end(system.ready(failing)[0], completes=False)
    assert system.look(failing).state == JobState.FAILED


def test_trials_that_a_retried_sweep_completed_may_win(system: Arrays) -> None:
    sweep_id = sweep(system, 3, max_parallel=1)
    (first,) = system.ready(sweep_id)
    train(system, first, 0.1)
    job_ledger.cancel(system.db, sweep_id)
    retry = job_ledger.retry(system.db, sweep_id).id
    plan_any(system.db, system.store, system.settings, retry)
    system.fill(retry)
    for _ in range(2):
        train(system, system.ready(retry)[0], 0.2)
    assert finish(system, retry)["winner"]["job_id"] == first.id
    set_job(system.db, sweep_id, ended_at=1.0)
    retain(system.db, system.store, system.settings.model_copy(update={"job_days": 1.0}))
    assert len(system.children(sweep_id, JobState.COMPLETED)) == 1, "the sweep's files are this trial's"
