"""Trainings on transformers' Trainer that are killed and stopped come to the same losses and weights, bit for bit."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobs import process
from tests import tiny
from tests.training_kit import Attempt, at_step, labelled_texts, run_attempt, write_rows
from worker.stop import StopReason
from worker.training.reports import Begun, Saved

pytestmark = [pytest.mark.slow]

NUM_STEPS = 24
EVERY_STEPS = 5


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    """A training of a tiny encoder with dropout; an epoch has 10 steps, so that some checkpoints stand at its end."""
    return {
        "kind": "training",
        "task": "text-classification",
        "model": str(tiny.tiny_encoder(tmp_path / "encoder")),
        "data": {
            "train": write_rows(tmp_path / "train.jsonl", labelled_texts(40)),
            "eval": write_rows(tmp_path / "eval.jsonl", labelled_texts(12, seed=4)),
        },
        "arguments": {
            "max_steps": NUM_STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 5,
            "logging_steps": 1, "eval_strategy": "epoch",
        },
        "checkpoint": {"every_steps": EVERY_STEPS, "best": "eval_accuracy"},
    }  # fmt: skip


def with_arguments(spec: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """The same training with other arguments."""
    return {**spec, "arguments": {**spec["arguments"], **arguments}}


def shot(spec: dict[str, Any], folder: Path, *at_steps: int, **fields: Any) -> list[Attempt]:
    """The attempts of a training that is killed at some steps, and each time goes on from its newest checkpoint."""
    attempts: list[Attempt] = []
    saved: Saved | None = None
    for number, step in enumerate((*at_steps, None)):
        kill_when = None if step is None else at_step(step)
        attempts.append(run_attempt(spec, folder / str(number), resume=saved, kill_when=kill_when, **fields))
        saved = attempts[-1].saved or saved
    return attempts


def assert_same(attempts: list[Attempt], calm: Attempt) -> None:
    """What the attempts computed is what the calm run computed, where steps were computed twice each time."""
    for attempt in attempts:
        assert attempt.points == {at: value for at, value in calm.points.items() if at in attempt.points}
    assert {at for attempt in attempts for at in attempt.points} == set(calm.points)
    assert attempts[-1].weights == calm.weights


def test_a_run_killed_at_three_random_steps_is_the_same_run(tmp_path: Path, spec: dict[str, Any]) -> None:
    """Lost: the night's run, or the trust that it is the run that was asked for."""
    calm = run_attempt(spec, tmp_path / "calm")
    assert sorted(calm.losses) == list(range(1, NUM_STEPS + 1))
    chosen = random.Random(7)
    steps = [chosen.randint(first, first + 4) for first in (6, 12, 18)]
    attempts = shot(spec, tmp_path / "shot", *steps)
    assert [attempt.of(Begun)[0].step % EVERY_STEPS for attempt in attempts] == [0, 0, 0, 0]
    assert attempts[-1].of(Begun)[0].step >= 10
    assert_same(attempts, calm)


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_accumulation_steps": 3, "eval_strategy": "no"},
        {"dataloader_num_workers": 2},
        {"train_sampling_strategy": "group_by_length", "neftune_noise_alpha": 5.0, "label_smoothing_factor": 0.1},
    ],
    ids=["accumulation", "workers", "by-length"],
)
def test_so_is_one_of_another_kind(tmp_path: Path, spec: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Lost: the same, for those who accumulate, load in processes of their own, or sort by length."""
    spec = with_arguments(spec, **arguments)
    assert_same(shot(spec, tmp_path / "shot", 13), run_attempt(spec, tmp_path / "calm"))


def test_a_run_killed_inside_a_save_goes_on_from_the_checkpoint_before(tmp_path: Path, spec: dict[str, Any]) -> None:
    """Lost: every later attempt, to half a checkpoint that looks like a whole one."""
    calm = run_attempt(spec, tmp_path / "calm")
    folder = tmp_path / "first"

    def kill_inside_the_second_save(child: subprocess.Popen[bytes]) -> None:
        first, second = folder / f"checkpoint-{EVERY_STEPS}", f"checkpoint-{2 * EVERY_STEPS}"
        while child.poll() is None:
            if first.exists() and any(path.name == second for path in folder.glob("*/*")):
                process.kill_group(child)

    first = run_attempt(spec, folder, watch=kill_inside_the_second_save)
    assert first.saved is not None
    assert first.saved.step == EVERY_STEPS
    assert {path.name for path in folder.glob("checkpoint-*")} == {f"checkpoint-{EVERY_STEPS}"}
    second = run_attempt(spec, tmp_path / "second", resume=first.saved)
    assert_same([first, second], calm)


@pytest.mark.parametrize("reason", [StopReason.YIELD, StopReason.SHUTDOWN])
def test_a_stopped_run_saves_its_last_step_and_goes_on_there(
    tmp_path: Path, spec: dict[str, Any], reason: StopReason
) -> None:
    """Lost: the steps since the last checkpoint at each deployment; or a stopped run that says it is done."""
    calm = run_attempt(spec, tmp_path / "calm")
    first = run_attempt(spec, tmp_path / "first", stop_when=at_step(7), reason=reason)
    assert first.saved is not None
    assert 7 <= first.stopped.step == first.saved.step < NUM_STEPS
    assert max(first.losses) == first.stopped.step
    second = run_attempt(spec, tmp_path / "second", resume=first.saved)
    assert second.of(Begun)[0].step == first.stopped.step
    assert_same([first, second], calm)


def test_a_cancelled_run_ends_without_a_checkpoint(tmp_path: Path, spec: dict[str, Any]) -> None:
    """Lost: seconds of a GPU, to a checkpoint that nobody wants."""
    spec = with_arguments(spec, max_steps=10_000) | {"checkpoint": {"every_steps": 9_000}}
    attempt = run_attempt(spec, tmp_path / "run", stop_when=at_step(3), reason=StopReason.CANCEL)
    assert attempt.stopped.step < 9_000
    assert attempt.of(Saved) == []


def test_a_loss_that_is_not_a_number_names_the_step_and_the_last_good_checkpoint(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    """Lost: days of a GPU on weights that are nothing any more; or the last good ones, overwritten."""
    spec = with_arguments(spec, learning_rate=1e30, warmup_steps=0, max_grad_norm=0, eval_strategy="no")
    spec |= {"checkpoint": {"every_steps": 1}}
    broken = run_attempt(spec, tmp_path / "run")
    assert broken.broken.is_users
    assert broken.broken.code == "loss_not_finite"
    saved = broken.saved
    assert f"last good checkpoint is of step {0 if saved is None else saved.step}" in broken.broken.message


def test_halving_keeps_the_rows_of_each_step(tmp_path: Path, spec: dict[str, Any]) -> None:
    """Lost: the schedule and the batch that were asked for, to a GPU that is too small by a little."""
    spec = with_arguments(spec, per_device_train_batch_size=6, eval_strategy="no", max_steps=6)
    spec |= {"checkpoint": {"every_steps": 100}}
    whole, halved = run_attempt(spec, tmp_path / "whole"), run_attempt(spec, tmp_path / "halved", num_halvings=1)
    assert halved.finished.summary["micro_batch"] == 3
    assert halved.finished.summary["accumulation"] == 2
    first, same = (float.fromhex(attempt.losses[1]) for attempt in (whole, halved))
    assert first == pytest.approx(same, rel=0.2)  # dropout falls differently
