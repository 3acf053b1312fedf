"""Gangs under the daemon: killed, cancelled and preempted, a training over two slots loses nothing and leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.stack import Stack, stack
from tests.acceptance.test_faults import QUICK
from tests.acceptance.test_training import attempts, await_step, losses
from tests.conftest import wait_until
from tests.integration.test_training_loop import CLASSIFIER, write_module

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NUM_STEPS = 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gangs")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Stack]:
    """Two slots; a training may be preempted at once."""
    roots = json.dumps([str(folder)])
    with stack(folder / "data", slots=2, **QUICK, STOKER_CODE_ROOTS=roots, STOKER_PREEMPTABLE_SECONDS="0") as running:
        yield running


def spec(folder: Path, *, num_steps: int, **fields: Any) -> dict[str, Any]:
    """A small net over two slots, with all that a resumption can get wrong."""
    return {
        "kind": "training",
        "trainer": "torch",
        "module": write_module(folder, CLASSIFIER),
        "arguments": {"max_steps": num_steps, "per_device_train_batch_size": 4, "logging_steps": 1},
        "checkpoint": {"every_steps": 20},
        "slots": 2,
        **fields,
    }


def weights(running: Stack, job_id: str) -> str:
    with running.client() as client:
        return next(one["sha256"] for one in client.artifacts(job_id) if one["name"] == "model/net.safetensors")


def await_no_trainer(running: Stack) -> None:
    wait_until(lambda: not running.of_role("trainer"), "the end of every rank", 30.0)


def test_a_killed_gang_comes_to_the_same_losses_and_weights(running: Stack, folder: Path) -> None:
    """Lost: the night's run; or a slot for good, to a rank that waits for one that is gone."""
    whole = spec(folder, num_steps=120)
    calm = running.submit(whole)
    assert running.await_end(calm, 120.0)["state"] == "completed"
    (tried,) = attempts(running, calm)
    assert len(tried["slots"]) == 2
    await_no_trainer(running)
    shot = running.submit(whole)
    for step, role, number in ((30, "trainer", 1), (60, "celery", 0), (80, "celery", 1)):
        await_step(running, shot, step)
        victims = running.of_role(role)
        if len(victims) == 2:
            victims[number].kill()
    assert running.await_end(shot, 200.0)["state"] == "completed"
    assert losses(running, shot) == losses(running, calm)
    assert weights(running, shot) == weights(running, calm)
    tries = attempts(running, shot)
    assert len(tries) >= 2, tries
    assert [one["number"] for one in tries] == list(range(1, len(tries) + 1))
    assert tries[-1]["resumed_step"] > 0
    await_no_trainer(running)


def test_a_cancelled_gang_leaves_no_process(running: Stack, folder: Path) -> None:
    """Lost: both slots."""
    job_id = running.submit(spec(folder, num_steps=NUM_STEPS))
    await_step(running, job_id, 5)
    assert len(running.of_role("trainer")) == 2
    running.run("cancel", job_id)
    assert running.await_end(job_id, 60.0)["state"] == "cancelled"
    await_no_trainer(running)
    again = running.submit(spec(folder, num_steps=5))
    assert running.await_end(again, 120.0)["state"] == "completed"


def test_a_high_job_has_the_slots_and_the_gang_goes_on_later(running: Stack, folder: Path) -> None:
    """Lost: what is urgent, to a training of days; or the training, to what was urgent."""
    whole = spec(folder, num_steps=150)
    calm = running.submit(whole)
    assert running.await_end(calm, 120.0)["state"] == "completed"
    preempted = running.submit(whole | {"priority": "low"})
    await_step(running, preempted, 30)
    urgent = running.submit(spec(folder, num_steps=10, slots=1, priority="high"))
    assert running.await_end(urgent, 120.0)["state"] == "completed"
    assert running.await_end(preempted, 120.0)["state"] == "completed"
    tries = attempts(running, preempted)
    assert [one["end"] for one in tries] == ["preempted", "completed"]
    assert tries[1]["resumed_step"] == tries[0]["last_step"] >= 30
    assert losses(running, preempted) == losses(running, calm)
    assert weights(running, preempted) == weights(running, calm)
