"""On a real GPU: the promises that a CPU cannot be asked for. `pytest -m gpu` runs them where there is one."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import wait_until
from tests.support import tiny
from tests.support.rows import embedding_spec, varied_rows, write_rows
from tests.support.stack import QUICK, stack
from tests.support.task_kit import TEXTS, load, outputs, same, text_rows
from tests.support.trained import attempt, shot_thrice
from tests.support.training_specs import NUM_STEPS, digits_spec, encoder_spec
from worker.host.slots import find_devices
from worker.inference.budget import Budget
from worker.inference.engine import InferenceEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.timeout(3600),
]

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("task", "build"),
    [
        ("embeddings", tiny.tiny_encoder),
        ("text-classification", tiny.tiny_classifier),
        ("text-generation", tiny.tiny_causal_lm),
    ],
)
def test_outputs_are_those_of_the_cpu(task: str, build: Any, tmp_path: Path) -> None:
    model, rows = build(tmp_path / "model"), text_rows([text for text in TEXTS if text.strip()])
    expected, found = (outputs(load(task, model, device=torch.device(kind)), rows) for kind in ("cpu", "cuda"))
    for one, other in zip(found, expected, strict=True):
        if task == "embeddings":
            np.testing.assert_allclose(one, other, atol=1e-4)
        else:
            assert same(one, other, tolerance=1e-4)


def test_too_large_a_batch_is_halved_until_it_fits(tmp_path: Path) -> None:
    task = load("text-classification", tiny.tiny_classifier(tmp_path / "model", max_tokens=512), device=CUDA)
    rows = text_rows([" ".join(tiny.SENTENCES)] * 4096)
    encoded = task.encode(rows)
    torch.cuda.set_per_process_memory_fraction(0.02, CUDA)
    try:
        budget = Budget(10**9, 10**6, 0)
        pieces = InferenceEngine(task, CUDA, budget).compute(encoded, None, lambda: None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
        gc.collect()
        torch.cuda.empty_cache()
    assert [one.row for piece in pieces for one in piece.members] == rows
    assert all(piece.error is None for piece in pieces)
    assert budget.max_tokens < 10**9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("trainer", ["transformers", "torch"])
def test_three_kills_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str, dtype: str) -> None:
    monkeypatch.setenv("STOKER_CODE_ROOTS", json.dumps([str(tmp_path)]))
    spec = {**(encoder_spec if trainer == "transformers" else digits_spec)(tmp_path), "dtype": dtype}
    calm = attempt(tmp_path / "calm", spec, device="cuda")
    assert list(calm.losses) == list(range(1, NUM_STEPS + 1))
    attempts = shot_thrice(tmp_path / "shot", spec, device="cuda")
    told: dict[int, str] = {}
    for each in attempts:
        told |= each.losses
    assert told == calm.losses
    digests = [sorted(path.read_bytes() for path in each.model.glob("*.safetensors")) for each in (attempts[-1], calm)]
    assert digests[0] == digests[1] != []


def test_a_job_on_gpus_survives_killed_runners(tmp_path: Path) -> None:
    model, rows = tiny.tiny_encoder(tmp_path / "encoder"), tmp_path / "rows.jsonl"
    write_rows(rows, varied_rows(20_000))
    with stack(tmp_path / "data", **QUICK) as running:
        with running.client() as client:
            (slot,) = client.slots()
        assert (slot["device"], slot["device_uuid"]) == ("cuda", find_devices()[0].uuid)
        job_id = running.submit(embedding_spec(model, rows))
        for number in range(3):
            with running.client() as client:
                wait_until(lambda least=number * 2000: client.job(job_id)["counts"]["done"] > least, "progress", 120.0)
            for victim in running.of_role("runner"):
                victim.kill()
        assert running.await_end(job_id, 300.0)["state"] == "completed"
        found = running.results(job_id)
    assert [one["row_index"] for one in found] == list(range(20_000))
