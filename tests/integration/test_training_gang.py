"""Ranks that compute together: the same steps as one process with as many rows, and one's death ends them all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.db.states import StopReason
from jobs.errors import RunnerDied
from jobs.specs.training import TrainingSpec
from tests.support import tiny
from tests.support.rows import write_rows
from tests.support.trained import Attempt, attempt
from tests.support.training_specs import CLASSIFIER, write_module
from worker.stop import Stop
from worker.training.attempt.ranks import RankProcesses
from worker.training.plan import Plan
from worker.training.reports import Broken, Finished, Progress, RankReport, Saved, Stopped

pytestmark = pytest.mark.slow

NUM_STEPS, MANY_STEPS = 10, 100


def run_ranks(
    folder: Path,
    spec: dict[str, Any],
    num_ranks: int,
    *,
    resume: Saved | None = None,
    on_report: Callable[[RankReport, Stop], None] = lambda *_: None,
) -> Attempt:
    """Run an attempt's ranks to their end."""
    folder.mkdir(parents=True)
    plan = Plan(
        job_id="job_1",
        spec=TrainingSpec.model_validate(spec),
        folder=str(folder),
        device="cpu",
        num_threads=1,
        model=spec.get("model"),
        resume=None if resume is None else resume.folder,
        num_ranks=num_ranks,
    )
    environment = {**os.environ, "STOKER_INPUT_ROOTS": '["/"]', "STOKER_CODE_ROOTS": '["/"]', "OMP_NUM_THREADS": "1"}
    found, stop = Attempt(), Stop()
    with RankProcesses(plan, environment) as ranks, stop.notifying(lambda: ranks.request_stop(stop)):
        for report in ranks.reports():
            found.reports.append(report)
            on_report(report, stop)
            if isinstance(report, Finished | Stopped | Broken):
                break
    return found


def ranks_of(folder: Path) -> list[psutil.Process]:
    """The living processes of an attempt, by rank."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = process.cmdline()
            if str(folder / "plan.json") in command and "worker.training.attempt.process" in command:
                found.append(process)
    return sorted(found, key=lambda process: process.cmdline()[process.cmdline().index("--rank") + 1])


def trainer_spec(folder: Path) -> dict[str, Any]:
    """A tiny encoder without dropout."""
    encoder = tiny.tiny_encoder(folder / "encoder")
    config = json.loads((encoder / "config.json").read_text())
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    (encoder / "config.json").write_text(json.dumps({**config, **calm}))
    records = [{"text": f"{number} {tiny.SENTENCES[number % 8]}", "label": "ab"[number % 2]} for number in range(40)]
    return {
        "kind": "training",
        "task": "text-classification",
        "model": str(encoder),
        "data": {
            "train": str(write_rows(folder / "train.jsonl", records)),
            "eval": str(write_rows(folder / "eval.jsonl", records[:13])),  # the last batch of an evaluation is not full
        },
        "arguments": {
            "max_steps": NUM_STEPS,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
        },
        "checkpoint": {"every_steps": 4},
    }


FORKED = """
    class Forked(nn.Module):  # one branch is used for some rows only, another one by a further scalar only
        def __init__(self):
            super().__init__()
            self.net, self.bright, self.told = model, nn.Linear(64, 10), nn.Linear(64, 1)
        def forward(self, images):
            outputs, bright = self.net(images), (images.mean(1) > 0.31).nonzero()[:, 0]
            return outputs.index_add(0, bright, self.bright(images[bright])) if len(bright) else outputs
    model = Forked()
    def loss(batch):
        images, labels = batch
        return nn.functional.cross_entropy(model(images), labels), {"told": model.told(images).mean()}
"""
"""In a module's `build`, makes weights that a step may not use, on one rank or on all."""


def loop_spec(folder: Path) -> dict[str, Any]:
    """A net without parts that depend on a rank's own rows or random numbers."""
    source = CLASSIFIER.replace("nn.Dropout(0.2)", "nn.Identity()").replace("nn.BatchNorm1d(width)", "nn.Identity()")
    source = source.replace("    def evaluate(batch):", f"{FORKED}    def evaluate(batch):")
    return {
        "kind": "training",
        "trainer": "torch",
        "module": write_module(folder, source.replace(" + 0.01 * torch.randn_like(images)", "")),
        "arguments": {
            "max_steps": NUM_STEPS,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "max_grad_norm": 1.0,
        },
        "checkpoint": {"every_steps": 4},
    }


def check_alike(alone: Attempt, together: dict[int, str], num_steps: int = NUM_STEPS) -> None:
    """Every step's loss is the same to 1e-5."""
    assert list(together) == list(alone.losses) == list(range(1, num_steps + 1))
    for step, loss in alone.losses.items():
        assert float.fromhex(together[step]) == pytest.approx(float.fromhex(loss), abs=1e-5)


def scores(found: Attempt) -> dict[str, float]:
    """Of the last evaluation."""
    found_scores = {name: value for _, name, value in found.points if name.startswith("eval_")}
    assert found_scores
    return found_scores


def test_two_ranks_are_one_process_with_the_doubled_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_CODE_ROOTS", json.dumps([str(tmp_path)]))
    spec = loop_spec(tmp_path)
    alone = attempt(tmp_path / "alone", spec)
    spec["arguments"]["per_device_train_batch_size"] = 4
    together = run_ranks(tmp_path / "together", spec, 2)
    check_alike(alone, together.losses)
    assert scores(together) == pytest.approx(scores(alone), abs=1e-5)


def test_so_are_two_of_the_trainers_that_stop_and_go_on(tmp_path: Path) -> None:
    spec = trainer_spec(tmp_path)
    # However late the stop comes on a busy machine, the training is not over.
    spec["arguments"]["max_steps"], spec["checkpoint"] = MANY_STEPS, {"every_steps": 500}
    alone = attempt(tmp_path / "alone", spec)
    spec["arguments"]["per_device_train_batch_size"] = 4

    def stop(report: RankReport, stop: Stop) -> None:
        if isinstance(report, Progress) and report.step == 6:  # in the second epoch, whose order of rows is another
            stop.request(StopReason.YIELD)

    first = run_ranks(tmp_path / "first", spec, 2, on_report=stop)
    stopped, saved = first.last(Stopped), first.last(Saved)
    assert isinstance(stopped, Stopped), first.reports[-1]
    assert 6 <= stopped.step == saved.step < MANY_STEPS
    last = run_ranks(tmp_path / "last", spec, 2, resume=saved)
    check_alike(alone, {**first.losses, **last.losses}, MANY_STEPS)
    assert scores(last) == pytest.approx(scores(alone), abs=1e-5)


def test_two_ranks_end_early_at_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_CODE_ROOTS", json.dumps([str(tmp_path)]))
    spec = loop_spec(tmp_path)
    spec["arguments"]["max_steps"] = MANY_STEPS

    def finish(report: RankReport, stop: Stop) -> None:
        if isinstance(report, Progress) and report.step == 3:
            stop.request(StopReason.FINISH)

    found = run_ranks(tmp_path / "together", spec, 2, on_report=finish)
    finished = found.last(Finished)
    assert isinstance(finished, Finished), found.reports[-1]
    assert 3 <= finished.step < MANY_STEPS
    assert list(found.losses) == list(range(1, finished.step + 1))


@pytest.mark.soak  # under the daemon, it is one of the ends in tests/acceptance/test_gangs.py
def test_a_dead_rank_ends_all_and_the_next_attempt_goes_on(tmp_path: Path) -> None:
    spec = loop_spec(tmp_path)
    spec |= {"module": write_module(tmp_path, CLASSIFIER)}  # with all that a resumption can get wrong
    calm = run_ranks(tmp_path / "calm", spec, 2)
    reports: list[RankReport] = []

    def kill(report: RankReport, _: Stop) -> None:
        reports.append(report)
        if isinstance(report, Progress) and report.step >= 6 and len(ranks_of(tmp_path / "killed")) == 2:
            ranks_of(tmp_path / "killed")[1].kill()

    with pytest.raises(RunnerDied, match="rank 1 was ended by SIGKILL"):
        run_ranks(tmp_path / "killed", spec, 2, on_report=kill)
    assert ranks_of(tmp_path / "killed") == []
    saved = next(report for report in reversed(reports) if isinstance(report, Saved))
    last = run_ranks(tmp_path / "last", spec, 2, resume=saved)
    recorded = {
        step: value.hex()
        for report in reports
        if isinstance(report, Progress)
        for step, name, value in report.points
        if name == "loss"
    }
    assert {**recorded, **last.losses} == calm.losses
    assert (last.model / "net.safetensors").read_bytes() == (calm.model / "net.safetensors").read_bytes()


def test_the_rank_that_knows_the_cause_is_reported(tmp_path: Path) -> None:
    spec = loop_spec(tmp_path)
    source = CLASSIFIER.replace(
        "def evaluate(batch):",
        "import os\n    assert os.environ['RANK'] == '0', 'no such thing'\n    def evaluate(batch):",
    )
    spec["module"] = write_module(tmp_path, source)
    found = run_ranks(tmp_path / "a", spec, 2)
    report = found.last(Broken)
    assert report.is_users
    assert "AssertionError: no such thing" in report.message
