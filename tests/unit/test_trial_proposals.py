"""What TPE is told about the trials of a sweep, and that its package is asked for in one sentence."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from jobs.db.states import JobState
from jobs.errors import InvalidSpec
from jobs.ledger.groups.arrays import Trial
from jobs.specs.sweep_spec import SweepField, SweptValue
from scheduler.control.planning.trial_search import check_search, proposals

SWEEP = SweepField.model_validate(
    {
        "parameters": {
            "lr": {"low": 1e-5, "high": 1e-2, "log": True},
            "layers": {"low": 1, "high": 4, "integer": True},
            "kind": {"choices": [1, True, 1.0, "1"]},
        },
        "trials": 50,
        "metric": "eval_accuracy",
        "search": "tpe",
        "max_parallel": 10,
    }
)


def completed(number: int) -> list[Trial]:
    """Trials that were better the more layers they had."""
    return [
        Trial(index, f"job_{index}", JobState.COMPLETED, values, float(values["layers"]))
        for index, values in enumerate(map(SWEEP.drawn, range(number)))
    ]


def propose(trials: Sequence[Trial], *numbers: int) -> list[Mapping[str, SweptValue]]:
    return [values for _, values in proposals(SWEEP, trials, numbers)]


def test_proposals_lie_in_their_ranges_and_differ_while_they_run() -> None:
    found = propose(completed(20), *range(20, 30))
    assert len({tuple(values.items()) for values in found}) == 10
    for values in found:
        assert 1e-5 <= float(values["lr"]) <= 1e-2
        assert values["layers"] in (1, 2, 3, 4)
        assert isinstance(values["layers"], int)
        assert values["kind"] in (1, "1")
    assert sum(values["layers"] == 4 for values in found) >= 4, "the largest value is the best"


def test_a_proposal_depends_on_its_number_and_on_what_is_recorded() -> None:
    trials = completed(20)
    assert propose(trials, 20) == propose(trials, 20)
    assert propose(trials, 20) != propose(trials, 21)
    better = [*trials[:-1], replace(trials[-1], value=100.0)]
    assert propose(better, 20) != propose(trials, 20)


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED])
def test_trials_that_made_nothing_steer_no_proposal(state: JobState) -> None:
    trials = completed(20)
    lost = replace(trials[0], index=20, job_id="job_20", state=state)
    assert propose([*trials, lost], 21) == propose(trials, 21)
    assert propose([*trials, replace(lost, state=JobState.COMPLETED, value=None)], 21) == propose(trials, 21)


def test_trials_that_run_or_ended_early_count() -> None:
    trials = completed(20)
    running = [replace(trial, state=JobState.RUNNING, value=None) for trial in trials[:10]]
    pruned = [replace(trial, pruned_step=5) for trial in trials[:10]]
    found = [propose([*some, *trials[10:]], 21) for some in (trials[:10], running, pruned)]
    assert found[0] != found[1] != found[2] != found[0]


def test_a_number_that_a_retried_sweep_had_gets_the_same_values() -> None:
    trials = completed(20)
    lost = Trial(20, "job_20", JobState.FAILED, {"lr": 1e-3, "layers": 2, "kind": True}, None)
    ((_, again), (_, new)) = proposals(SWEEP, [*trials, lost], [20, 21])
    assert again == lost.values
    assert new != again


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_search(SWEEP)
    found = importlib.util.find_spec

    def without(name: str, *arguments: Any) -> Any:
        return None if name == "optuna" else found(name, *arguments)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(InvalidSpec) as caught:
        propose(completed(1), 1)
    assert caught.value.message == (
        "sweep.search: 'tpe' needs the package optuna, which this scheduler lacks; install it where the scheduler runs "
        "(pip install 'stoker[sweeps]') and restart the scheduler"
    )
    assert caught.value.param == "sweep.search"
    check_search(SWEEP.model_copy(update={"search": "random"}))
