"""A sweep on a real stack: its trials are trained, the best one wins, and another job uses its model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.rows import LABELLED, labelled_rows, write_rows
from tests.support.stack import QUICK, stack

pytestmark = pytest.mark.slow


def test_the_winner_of_a_sweep_is_the_model_of_a_job_that_waits_for_it(tmp_path: Path) -> None:
    rows = str(write_rows(tmp_path / "eval.jsonl", labelled_rows(40)))
    spec = {
        "kind": "training",
        "task": "text-classification",
        "model": str(tiny.tiny_encoder(tmp_path / "encoder")),
        "data": {"train": str(write_rows(tmp_path / "train.jsonl", labelled_rows(80))), "eval": rows},
        "arguments": {
            "max_steps": 10, "per_device_train_batch_size": 8, "learning_rate": "${lr}", "eval_strategy": "steps",
            "eval_steps": 10,
        },
        "sweep": {
            "parameters": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "trials": 2, "metric": "eval_loss",
            "max_parallel": 2,
        },
    }  # fmt: skip
    with stack(tmp_path / "data", slots=2, **QUICK) as running:
        sweep = running.submit(spec)
        inference = {"task": "text-classification", "input": {"path": rows, "columns": {"text": "text"}}}
        answers = running.submit({**inference, "model": f"job:{sweep}"})
        assert running.await_end(sweep, 600.0)["state"] == "completed"
        assert running.await_end(answers, 360.0)["state"] == "completed"
        assert {result["output"][0]["label"] for result in running.results(answers)} <= set(LABELLED)
        running.run("artifacts", sweep, "--output", str(tmp_path / "made"))
        table = json.loads((tmp_path / "made" / "sweep.json").read_text())
        losses = [trial["eval_loss"] for trial in table["trials"]]
        assert len(losses) == 2
        assert table["winner"]["eval_loss"] == min(losses)
        with running.client() as client:
            digests = {
                job_id: {one["name"]: one["sha256"] for one in client.artifacts(job_id)}["model/model.safetensors"]
                for job_id in (sweep, table["winner"]["job_id"])
            }
            assert client.job(sweep)["children"] == {"completed": 2}
        assert len(set(digests.values())) == 1
