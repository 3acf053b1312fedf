"""Sweeps that search and that end trials early, on a real stack whose scheduler is killed on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.db.states import JobState
from jobs.errors import ServiceUnavailable
from jobs.ledger.groups.arrays import Trial
from jobs.specs.sweep_spec import SweepField
from scheduler.control.planning.trial_search import proposals
from tests.conftest import wait_until
from tests.support.stack import QUICK, Stack, stack

pytestmark = pytest.mark.slow

MODULE = '''
"""A training whose metric follows from its option `rate`. After 30 steps it waits for the file `gate`, if any.

An evaluation after step 10 lasts as long as the file `gate` with the suffix `-held` exists.
"""
import os
import time
import torch
from torch import nn
from stoker.training import Parts, Phase

def build(setup):
    rate, gate = setup.options["rate"], setup.options.get("gate")
    model = nn.Linear(2, 1)
    steps = 0
    def loss(batch):
        nonlocal steps
        steps += 1
        while gate and steps > 30 and not os.path.exists(gate):
            time.sleep(0.01)  # a file is the only signal between two processes here
        return model(batch[0]).pow(2).mean()
    def evaluate(batch):
        while gate and steps > 10 and os.path.exists(f"{gate}-held"):
            time.sleep(0.01)  # a file is the only signal between two processes here
        return {"loss": torch.tensor((rate - 0.7) ** 2)}
    rows = torch.utils.data.TensorDataset(torch.ones(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Parts(models={"net": model}, phases=[Phase(optimizer=optimizer, loss=loss)], train=rows, eval_data=rows,
                 evaluate=evaluate)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Stack]:
    (folder / "net.py").write_text(MODULE)
    with stack(folder / "data", STOKER_CODE_ROOTS=json.dumps([str(folder)]), **QUICK) as started:
        yield started


def spec(folder: Path, *, max_steps: int, options: dict[str, Any], **sweep: Any) -> dict[str, Any]:
    return {
        "kind": "training",
        "trainer": "torch",
        "module": str(folder / "net.py"),
        "options": {"rate": "${rate}", **options},
        "arguments": {"max_steps": max_steps, "per_device_train_batch_size": 8, "eval_steps": 10},
        "sweep": {"parameters": {"rate": {"low": 0.0, "high": 1.0}}, "metric": "eval_loss", "max_parallel": 1, **sweep},
    }


def trials_of(running: Stack, sweep_id: str) -> list[dict[str, Any]]:
    """The trials so far, by their number."""
    with running.client() as client:
        return sorted(client.jobs(parent=sweep_id), key=lambda trial: int(trial["child_index"]))


def await_trial(running: Stack, sweep_id: str, number: int) -> None:
    """Wait until a trial is there."""
    wait_until(lambda: len(trials_of(running, sweep_id)) > number, f"trial {number}", 600.0)


def kill_scheduler(running: Stack) -> None:
    """Kill -9 the scheduler, and wait until another one is there."""
    killed = running.of_role("scheduler")
    for victim in killed:
        victim.kill()
    for victim in killed:
        victim.wait()

    def answers() -> bool:
        with suppress(ServiceUnavailable), running.client() as client:
            return client.jobs_page() is not None
        return False

    wait_until(answers, "a new scheduler", 300.0)


def table_of(running: Stack, sweep_id: str, folder: Path) -> dict[str, Any]:
    running.run("artifacts", sweep_id, "--output", str(folder / sweep_id))
    return dict(json.loads((folder / sweep_id / "sweep.json").read_text()))


@pytest.mark.soak  # tests/conformance/test_trial_search.py does it without a stack
def test_tpe_proposes_the_same_trials_though_its_scheduler_is_killed(running: Stack, folder: Path) -> None:
    number = 13
    document = spec(folder, max_steps=3, options={}, trials=number, search="tpe", seed=5)
    sweep_id = running.submit(document)
    for at in (3, 11):
        await_trial(running, sweep_id, at)
        kill_scheduler(running)
    assert running.await_end(sweep_id, 900.0)["state"] == "completed"
    table = table_of(running, sweep_id, folder)
    assert [trial["index"] for trial in table["trials"]] == list(range(number))
    field = SweepField.model_validate(document["sweep"])
    expected: list[Trial] = []
    for index in range(number):
        ((_, values),) = proposals(field, expected, [index])
        loss = float(np.float32((float(values["rate"]) - 0.7) ** 2))  # as the module records it
        expected.append(Trial(index, f"job_{index:02d}", JobState.COMPLETED, values, loss))
    assert [trial["values"] for trial in table["trials"]] == [trial.values for trial in expected]
    assert table["winner"]["index"] == min(expected, key=lambda trial: trial.value or 0.0).index
    for trial in trials_of(running, sweep_id):
        assert trial["spec"]["options"]["rate"] == trial["trial_values"]["rate"]
        assert trial["attempt"] == 1


def _kill_before_its_end(running: Stack, trial_id: str, held: Path) -> None:
    """Kill -9 the training of a trial that its sweep has ended early, while it makes its last evaluation."""
    with running.client() as client:
        wait_until(lambda: client.job(trial_id)["pruned_step"] is not None, "the end of trial 3", 600.0)
    for victim in running.of_role("trainer"):
        victim.kill()
        victim.wait()
    held.unlink()


def test_trials_that_are_not_among_the_best_end_early(running: Stack, folder: Path) -> None:
    number, max_steps = 6, 60
    sweep_id = running.submit(
        spec(
            folder,
            max_steps=max_steps,
            options={"gate": f"{folder}/gate-${{index}}"},
            trials=number,
            seed=1,
            early_stopping={"method": "asha", "min_steps": 10},
        )
    )

    held = folder / "gate-3-held"
    held.touch()

    def is_known(index: int) -> bool:
        """Whether a trial waits for its gate, or has ended."""
        trial = trials_of(running, sweep_id)[index]
        with running.client() as client:
            steps = [one["step"] for one in client.metrics(trial["id"]) if one["name"] == "eval_loss"]
        return trial["ended_at"] is not None or max(steps, default=0) >= 30

    for index in range(number):
        await_trial(running, sweep_id, index)
        if index == 3:
            _kill_before_its_end(running, trials_of(running, sweep_id)[index]["id"], held)
        wait_until(lambda index=index: is_known(index), f"the comparison of trial {index}", 600.0)
        if index == 2:
            kill_scheduler(running)
        Path(f"{folder}/gate-{index}").touch()
    sweep = running.await_end(sweep_id, 600.0)
    assert sweep["state"] == "completed"
    assert sweep["children"] == {"completed": number}
    trials = trials_of(running, sweep_id)
    losses = [(trial["trial_values"]["rate"] - 0.7) ** 2 for trial in trials]
    went_on = [loss in sorted(losses[: index + 1])[: max(1, (index + 1) // 3)] for index, loss in enumerate(losses)]
    assert 1 < sum(went_on) < number
    for trial, goes_on in zip(trials, went_on, strict=True):
        assert trial["pruned_step"] == (None if goes_on else 10)
        assert trial["attempt"] == (2 if trial["child_index"] == 3 else 1)
        assert (trial["counts"]["total"] == max_steps) == goes_on
        with running.client() as client:
            names = [artifact["name"] for artifact in client.artifacts(trial["id"])]
        assert any(name.startswith("model/") for name in names)
    table = table_of(running, sweep_id, folder)
    assert table["winner"]["eval_loss"] == pytest.approx(min(losses))
    assert sweep["sweep"]["best"]["index"] == table["winner"]["index"]
    shown = running.run("status", sweep_id).stdout
    assert table["winner"]["job_id"] in shown
    assert f"{number - sum(went_on)} trial" in shown
