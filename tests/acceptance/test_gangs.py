"""A training on two slots under the daemon: both are held, one of them is taken away, and it goes on where it was."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.acceptance.stack import Stack, stack
from tests.acceptance.test_faults import QUICK
from tests.acceptance.test_training import attempts, await_step, write_rows
from tests.conftest import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def gang_spec(folder: Path) -> dict[str, Any]:
    """A training of a tiny encoder on two slots."""
    return {
        "kind": "training",
        "task": "text-classification",
        "model": str(tiny.tiny_encoder(folder / "encoder")),
        "data": {"train": str(write_rows(folder / "train.jsonl", 64))},
        "arguments": {"max_steps": 200, "per_device_train_batch_size": 8, "logging_steps": 1},
        "checkpoint": {"every_steps": 50},
        "slots": 2,
    }


def members_worker(running: Stack, job_id: str) -> Any:
    """The Celery worker of the slot that does not lead."""
    member = attempts(running, job_id)[-1]["slots"][1]
    return next(worker for worker in running.of_role("celery") if member in worker.cmdline())


@pytest.mark.parametrize(
    ("sent", "end"), [(signal.SIGTERM, "shutdown"), (signal.SIGKILL, "lost")], ids=["stopped", "killed"]
)
def test_a_gang_goes_on_after_one_of_its_slots_was_taken_away(tmp_path: Path, sent: signal.Signals, end: str) -> None:
    """Lost: a training that waits for ever for a slot that is gone, or the steps before an orderly restart."""
    with stack(tmp_path / "data", slots=2, **QUICK) as running:
        job_id = running.submit(gang_spec(tmp_path))
        await_step(running, job_id, 2)
        with running.client() as client:
            assert [slot["job_id"] for slot in client.slots()] == [job_id, job_id]
        wait_until(lambda: len(running.of_role("runner")) == 1, "the member's device is free")
        members_worker(running, job_id).send_signal(sent)
        job = running.await_end(job_id, 200.0)
        assert (job["state"], job["counts"]["done"]) == ("completed", 200)
        first, *_, last = attempts(running, job_id)
        assert first["end"] == end
        assert len(first["slots"]) == len(last["slots"]) == 2
        assert last["end"] == "completed"
        if end == "shutdown":
            assert last["resumed_step"] >= first["last_step"] > 0, "it was stopped with a checkpoint of its last step"
        wait_until(lambda: len(running.of_role("runner")) == 2, "each slot has its runner again")
