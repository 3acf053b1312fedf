"""A training whose step hangs is ended with a reason, and resumes from its newest checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.support.stack import QUICK, stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MODULE = """
import pathlib
import threading
import torch
from stoker.training import Parts, Phase

def build(setup):
    model = torch.nn.Linear(1, 1)
    hung = pathlib.Path(setup.options["hung"])
    steps = iter(range(100))

    def loss(batch):
        if next(steps) == 4 and not hung.exists():
            hung.touch()
            threading.Event().wait()
        return model(batch).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Parts(train=[torch.ones(1)] * 16, phases=[Phase(optimizer=optimizer, loss=loss)], models={"net": model})
"""


def test_a_training_step_that_hangs_is_ended_and_resumed(tmp_path: Path) -> None:
    module, hung = tmp_path / "hangs.py", tmp_path / "hung"
    module.write_text(MODULE)
    spec = {
        "kind": "training", "trainer": "torch", "module": str(module), "options": {"hung": str(hung)},
        "arguments": {"max_steps": 8, "per_device_train_batch_size": 2}, "checkpoint": {"every_steps": 2},
    }  # fmt: skip
    chosen = {"STOKER_CODE_ROOTS": json.dumps([str(tmp_path)]), "STOKER_STALL_LIMITS": '{"step": 8}'}
    with stack(tmp_path / "data", **{**QUICK, **chosen}) as running, running.client() as client:
        job_id = running.submit(spec)
        wait_until(
            lambda: [each["activity"] for each in client.job(job_id)["doing"]] == ["training step 5"],
            "the job shows the activity of its slot",
            300.0,
        )
        job = running.await_end(job_id, 300.0)
        assert job["state"] == "completed"
        stalled = [each for each in client.attempts(job_id) if "no progress" in str(each["reason"])]
        assert [each["end"] for each in stalled] == ["machine"]
        assert stalled[0]["reason"].startswith("training step 5 made no progress for ")
        assert client.attempts(job_id)[-1]["resumed_step"] == 4
