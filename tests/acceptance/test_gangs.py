"""Gangs under the daemon: a training on two slots that is killed, stopped and preempted loses nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import wait_until
from tests.support.stack import QUICK, Stack, stack
from tests.support.training_progress import attempts_of, await_attempt, await_step, losses
from tests.support.training_specs import CLASSIFIER, write_module

# A step takes 30 ms, so that the training still runs when the test stops it or kills its processes.
SLOW = CLASSIFIER.replace("    def loss(batch):", "    import time\n    def loss(batch):\n        time.sleep(0.03)")

pytestmark = pytest.mark.slow

NUM_STEPS = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gangs")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Stack]:
    """Two slots; a training may be preempted at once."""
    roots = json.dumps([str(folder)])
    with stack(folder / "data", slots=2, **QUICK, STOKER_CODE_ROOTS=roots, STOKER_PREEMPTABLE_SECONDS="0") as running:
        yield running


def spec(folder: Path, **fields: Any) -> dict[str, Any]:
    """A small net over two slots, with all that a resumption can get wrong."""
    return {
        "kind": "training",
        "trainer": "torch",
        "module": write_module(folder, SLOW),
        "arguments": {"max_steps": NUM_STEPS, "per_device_train_batch_size": 4, "logging_steps": 1},
        "checkpoint": {"every_steps": 10},
        "slots": 2,
        **fields,
    }


def weights(running: Stack, job_id: str) -> str:
    with running.client() as client:
        return next(one["sha256"] for one in client.artifacts(job_id) if one["name"] == "model/net.safetensors")


def worker_of(running: Stack, job_id: str, rank: int) -> psutil.Process:
    """The Celery worker of a gang's slot."""
    slot_id = attempts_of(running, job_id)[-1]["slots"][rank]
    return next(worker for worker in running.of_role("celery") if slot_id in worker.cmdline())


def rank_of(running: Stack, rank: int) -> psutil.Process:
    """A rank's process."""
    return next(process for process in running.of_role("trainer") if ["--rank", str(rank)] == process.cmdline()[-4:-2])


@pytest.fixture(scope="module")
def calm(running: Stack, folder: Path) -> str:
    """Id of a training that was left alone."""
    job_id = running.submit(spec(folder))
    assert running.await_end(job_id, 360.0)["state"] == "completed"
    (tried,) = attempts_of(running, job_id)
    assert len(tried["slots"]) == 2
    return job_id


def end_attempt(running: Stack, job_id: str, end: str) -> None:
    """Interrupt a gang so that its attempt ends in this way."""
    if end == "machine":
        rank_of(running, 1).kill()
    elif end == "shutdown":
        worker_of(running, job_id, 1).send_signal(signal.SIGTERM)  # an orderly restart of the member's slot
    else:
        worker_of(running, job_id, 0).kill()


@pytest.mark.parametrize(
    "ends", [("shutdown", "lost"), pytest.param(("machine", "shutdown", "lost"), marks=pytest.mark.soak)]
)
def test_a_preempted_killed_and_stopped_gang_gives_the_same_weights(
    ends: Sequence[str], running: Stack, folder: Path, calm: str
) -> None:
    job_id = running.submit(spec(folder, priority="low"))
    await_step(running, job_id, 15)
    with running.client() as client:
        assert [slot["job_id"] for slot in client.slots()] == [job_id, job_id]
    assert len(running.of_role("runner")) == 1, "the member's device is free for its rank"

    with running.client() as client:  # at once, while the other one still runs
        endless = {"max_steps": 100_000, "per_device_train_batch_size": 4}
        urgent = str(client.submit(spec(folder, priority="high", arguments=endless))["id"])
    await_step(running, urgent, 5)
    ranks = running.of_role("trainer")
    assert len(ranks) == 2
    running.run("cancel", urgent)
    assert running.await_end(urgent, 180.0)["state"] == "cancelled"
    wait_until(lambda: not any(rank.is_running() for rank in ranks), "no rank of a cancelled gang is left")

    for number, end in enumerate(ends, 2):
        await_attempt(running, job_id, number)
        end_attempt(running, job_id, end)

    assert running.await_end(job_id, 600.0)["state"] == "completed"
    assert losses(running, job_id) == losses(running, calm)
    assert weights(running, job_id) == weights(running, calm)
    tries = attempts_of(running, job_id)
    assert [one["number"] for one in tries] == list(range(1, len(ends) + 3))
    assert [one["end"] for one in tries] == ["preempted", *ends, "completed"]
    assert tries[1]["resumed_step"] == tries[0]["last_step"] >= 15, "it made way with a checkpoint of its last step"
    stopped = tries[1 + ends.index("shutdown")]
    assert tries[stopped["number"]]["resumed_step"] == stopped["last_step"], "it was stopped with one"
    assert tries[-1]["resumed_step"] > 0
    wait_until(lambda: len(running.of_role("runner")) == 2, "each slot has its runner again")
    wait_until(lambda: not running.of_role("trainer"), "no rank is left")
