"""A training whose process is killed and that resumes has exactly the losses and weights of one that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.trained import KILL_STEPS, Attempt, attempt, kill_at, run_with_kills, stopped
from tests.support.training_specs import NUM_STEPS, encoder_spec
from worker.training.reports import Finished, Progress, Saved

pytestmark = pytest.mark.slow


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    """A tiny encoder with dropout over 60 rows, evaluated on the way."""
    return encoder_spec(tmp_path)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """The same training, left alone."""
    folder = tmp_path_factory.mktemp("calm")
    return attempt(folder / "attempt", encoder_spec(folder))


def assert_kills_change_nothing(calm: Attempt, attempts: list[Attempt]) -> None:
    """The attempts together recorded the calm training's losses, and the last one has its weights."""
    assert list(calm.losses) == list(range(1, NUM_STEPS + 1))
    recorded: dict[int, str] = {}
    for each in attempts:
        recorded |= each.losses
    assert recorded == calm.losses
    assert attempts[-1].weights == calm.weights
    assert min(attempts[-1].losses) > 4, "the last attempt began where a checkpoint was"


def test_three_kills_change_nothing(tmp_path: Path, spec: dict[str, Any], calm: Attempt) -> None:
    assert_kills_change_nothing(calm, run_with_kills(tmp_path, spec, KILL_STEPS))


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        ({"gradient_accumulation_steps": 3, "dataloader_num_workers": 2}, "float32"),
        ({"train_sampling_strategy": "group_by_length", "lr_scheduler_type": "cosine"}, "float32"),
        ({}, "float16"),
    ],
    ids=["accumulation and workers", "by length", "a scaler of losses in float16"],
)
def test_a_kill_changes_nothing_with_other_arguments(
    tmp_path: Path, spec: dict[str, Any], arguments: dict[str, Any], dtype: str
) -> None:
    spec["arguments"] |= arguments
    spec["dtype"] = dtype
    assert_kills_change_nothing(attempt(tmp_path / "calm", spec), run_with_kills(tmp_path, spec, [7]))


def test_a_kill_inside_a_save_leaves_no_half_checkpoint(tmp_path: Path, spec: dict[str, Any], calm: Attempt) -> None:
    spec["checkpoint"]["every_steps"] = 1  # so that most of the time goes into saving
    killed = attempt(tmp_path / "killed", spec, until=kill_at(7))
    assert killed.status == -9
    steps = [int(path.name.removeprefix("checkpoint-")) for path in (tmp_path / "killed").glob("checkpoint-*")]
    newest = max(steps)  # the newest may not have been reported any more, but it is complete
    assert newest >= killed.last(Saved).step
    saved = Saved(newest, str(tmp_path / "killed" / f"checkpoint-{newest}"))
    last = attempt(tmp_path / "last", spec, resume=saved)
    assert last.weights == calm.weights


@pytest.mark.parametrize("reason", ["yield", "shutdown"])
def test_a_stop_ends_at_a_step_with_a_checkpoint(
    tmp_path: Path, spec: dict[str, Any], calm: Attempt, reason: str
) -> None:
    first = attempt(
        tmp_path / "first",
        spec,
        until=lambda report: reason if isinstance(report, Progress) and report.step == 5 else None,
    )
    at = stopped(first).step
    assert 5 <= at < NUM_STEPS
    assert first.last(Saved).step == at
    last = attempt(tmp_path / "last", spec, resume=first.last(Saved))
    assert {**first.losses, **last.losses} == calm.losses
    assert last.weights == calm.weights


def test_a_training_that_ends_early_ends_as_if_the_step_were_its_last(
    tmp_path: Path, spec: dict[str, Any], calm: Attempt
) -> None:
    found = attempt(
        tmp_path / "first",
        spec,
        until=lambda report: "finish" if isinstance(report, Progress) and report.step == 5 else None,
    )
    finished = found.last(Finished)
    assert isinstance(finished, Finished), found.reports[-1]
    assert 5 <= finished.step < NUM_STEPS
    assert found.losses == {step: calm.losses[step] for step in range(1, finished.step + 1)}
    evaluated = [step for step, name, _ in found.points if name == "eval_loss"]
    assert evaluated[-1] == finished.step, "the weights are those of the last evaluation"
    assert found.model.joinpath("model.safetensors").is_file()


def test_a_cancel_saves_nothing(tmp_path: Path, spec: dict[str, Any]) -> None:
    spec["checkpoint"] = {"every_steps": 500}
    found = attempt(
        tmp_path / "first",
        spec,
        until=lambda report: "cancel" if isinstance(report, Progress) and report.step == 3 else None,
    )
    assert stopped(found).step < NUM_STEPS
    assert found.last(Saved) is None


def test_half_the_micro_batch_is_the_same_step(tmp_path: Path, spec: dict[str, Any]) -> None:
    encoder = tmp_path / "calm-encoder"
    shutil.copytree(spec["model"], encoder)
    config = json.loads((encoder / "config.json").read_text())
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    (encoder / "config.json").write_text(json.dumps({**config, **calm}))
    spec |= {"model": str(encoder), "checkpoint": {"every_steps": 500}}
    spec["arguments"]["max_steps"] = 5
    whole = attempt(tmp_path / "whole", spec)
    halved = attempt(tmp_path / "halved", spec, num_halvings=1)
    for step, loss in whole.losses.items():
        assert float.fromhex(halved.losses[step]) == pytest.approx(float.fromhex(loss), abs=1e-4)
