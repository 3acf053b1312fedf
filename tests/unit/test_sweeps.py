"""The field `sweep`: what each trial draws, always the same, and what is no sweep."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from jobs.errors import InvalidSpec
from jobs.specs.array_spec import ArraySpec, parse_submission

TRAINING = {
    "kind": "training",
    "task": "text-classification",
    "model": "org/model",
    "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
    "arguments": {"learning_rate": "${lr}", "max_steps": "${steps}", "seed": "${index}"},
}
PARAMETERS = {"lr": {"low": 1e-5, "high": 1e-2, "log": True}, "steps": {"low": 10, "high": 12, "integer": True}}
SWEEP = {"parameters": PARAMETERS, "trials": 300, "metric": "eval_loss"}


ASHA = {"method": "asha", "min_steps": 5}


def sweep(changed: dict[str, Any] | None = None, **fields: Any) -> ArraySpec:
    spec = parse_submission({**TRAINING, "sweep": {**SWEEP, **(changed or {})}, **fields})
    assert isinstance(spec, ArraySpec)
    return spec


def test_each_trial_draws_by_its_number_and_always_the_same() -> None:
    spec = sweep()
    drawn = list(spec.listed())
    assert list(sweep().listed()) == drawn
    assert next(islice(spec.listed(217), 1)) == drawn[217]
    assert list(sweep({"trials": 10}).listed()) == drawn[:10]
    assert list(sweep({"seed": 1}).listed()) != drawn
    assert len({one["lr"] for one in drawn}) == 300


def test_values_are_drawn_from_the_whole_of_their_ranges() -> None:
    drawn = list(sweep().listed())
    assert {one["steps"] for one in drawn} == {10, 11, 12}
    assert all(isinstance(one["steps"], int) for one in drawn)
    assert all(1e-5 <= float(one["lr"]) <= 1e-2 for one in drawn)
    decades = [sum(10.0**power <= float(one["lr"]) < 10.0 ** (power + 1) for one in drawn) for power in (-5, -4, -3)]
    assert min(decades) > 70, "the logarithm is drawn evenly"
    choices = sweep({"parameters": {**PARAMETERS, "lr": {"choices": ["a", "b"]}}})
    assert {one["lr"] for one in choices.listed()} == {"a", "b"}


def test_a_trial_is_a_training_with_the_drawn_values() -> None:
    spec = sweep()
    values = next(iter(spec.listed()))
    child = spec.child(0, values)
    assert child.kind == "training"
    assert child.arguments == {"learning_rate": values["lr"], "max_steps": values["steps"], "seed": 0}
    assert spec.sweep is not None
    spec.sweep.check_trial(child)


@pytest.mark.parametrize(("trials", "max_parallel"), [(1, 1), (20, 10), (127, 63), (128, 64), (1000, 64)])
def test_tpe_proposes_at_most_half_of_its_trials_at_once(trials: int, max_parallel: int) -> None:
    spec = sweep({"search": "tpe", "trials": trials}).sweep
    assert spec is not None
    assert spec.max_parallel == max_parallel


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trials": 0}, "sweep.trials: "),
        ({"parameters": {}}, "sweep.parameters: "),
        ({"parameters": {"lr": {"low": 1, "high": 1}}}, "sweep.parameters.lr"),
        ({"parameters": {"lr": {"low": 0, "high": 1, "log": True}}}, "sweep.parameters.lr"),
        ({"parameters": {"lr": {"low": 0.5, "high": 3, "integer": True}}}, "sweep.parameters.lr"),
        ({"parameters": {"lr": {"low": 1}}}, "sweep.parameters.lr.high: is required"),
        ({"parameters": {"lr": {"choices": []}}}, "sweep.parameters.lr.choices: must not be empty"),
        ({"parameters": {"lr": {"choices": [1], "low": 2}}}, "sweep.parameters.lr.low: unknown field"),
        ({"search": "bayes"}, "sweep.search: "),
        (
            {"parameters": {**PARAMETERS, "decay": {"low": 0, "high": 1}}},
            "sweep.parameters.decay: is not used; put ${decay} into the spec, or leave it out",
        ),
        (
            {"search": "tpe", "trials": 127, "max_parallel": 64},
            "sweep.max_parallel: is 64, but search: tpe learns from trials that have "
            "ended; set it to at most half of the trials, 63",
        ),
        ({"search": "tpe", "trials": 1001}, "sweep.trials: search: tpe takes at most 1000 trials"),
        (
            {"search": "tpe", "parameters": {**PARAMETERS, "lr": {"low": 1, "high": 2**51, "integer": True}}},
            "sweep.parameters.lr: search: tpe takes whole numbers up to 2^50",
        ),
        ({"early_stopping": {"method": "median", "min_steps": 5}}, "sweep.early_stopping.method: "),
        ({"early_stopping": {"method": "asha"}}, "sweep.early_stopping.min_steps: "),
        ({"early_stopping": {**ASHA, "reduction_factor": 1}}, "sweep.early_stopping.reduction_factor: "),
        ({"metric": "eval_goodness"}, "sweep.metric: the name 'eval_goodness' does not say whether"),
        ({"parameters": {"lr": PARAMETERS["lr"]}}, "array: the spec uses ${steps}, but the values have lr, index"),
    ],
)
def test_what_is_no_sweep_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        sweep(changed)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("changed", "fields", "message"),
    [
        ({"metric": "eval_wer"}, {}, "sweep.metric: the training has no metric 'eval_wer'; it has loss, eval_loss"),
        ({}, {"data": {"train": "train.jsonl"}}, "sweep.metric: 'eval_loss' needs rows to evaluate"),
        (
            {"early_stopping": ASHA},
            {},
            "sweep.early_stopping: 'eval_loss' is recorded only at the end of the training; set arguments.eval_steps",
        ),
        (
            {"early_stopping": ASHA},
            {"arguments": {"learning_rate": "${lr}", "max_steps": "${steps}", "eval_on_start": True}},
            "sweep.early_stopping: 'eval_loss' is recorded only at the end",
        ),
        (
            {"early_stopping": ASHA},
            {
                "arguments": {
                    "learning_rate": "${lr}",
                    "max_steps": "${steps}",
                    "eval_steps": 6,
                    "eval_strategy": "steps",
                }
            },
            "sweep.early_stopping.min_steps: the first 'eval_loss' from step 5 on is that of step 6, but the training "
            "has only 4 steps",
        ),
        (
            {"early_stopping": ASHA, "metric": "loss"},
            {"arguments": {"learning_rate": "${lr}", "max_steps": "${steps}"}},
            "sweep.early_stopping.min_steps: the first 'loss' from step 5 on is that of step 5, but",
        ),
    ],
)
def test_a_metric_that_no_trial_records_is_refused(
    changed: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    spec = sweep({"parameters": {**PARAMETERS, "steps": {"choices": [4]}}, **changed}, **fields)
    assert spec.sweep is not None
    with pytest.raises(InvalidSpec) as caught:
        spec.sweep.check_trial(spec.child(0, next(iter(spec.listed()))))
    assert caught.value.message.startswith(message)


def test_an_array_is_no_sweep_and_a_sweep_trains() -> None:
    with pytest.raises(InvalidSpec, match="a spec has either array or sweep"):
        sweep(array={"values": [1]})
    inference = {"task": "text-classification", "model": "m", "input": {"path": "x"}, "name": "${lr} ${steps}"}
    spec = parse_submission({**inference, "sweep": SWEEP})
    assert isinstance(spec, ArraySpec)
    assert spec.sweep is not None
    with pytest.raises(InvalidSpec, match="sweep: can only be used with kind: training"):
        spec.sweep.check_trial(spec.child(0, next(iter(spec.listed()))))


def test_a_metric_that_is_recorded_in_time_may_end_trials_early() -> None:
    for arguments in ({"eval_steps": 5}, {"eval_strategy": "epoch"}, {"eval_strategy": "steps", "logging_steps": 2}):
        spec = sweep({"early_stopping": ASHA}, arguments={**TRAINING["arguments"], **arguments})
        assert spec.sweep is not None
        spec.sweep.check_trial(spec.child(0, {"lr": 0.1, "steps": 10}))
