"""Promises that can only be tested on a real GPU. `pytest -m gpu` runs them on a machine that has one."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.data.rows import Row
from jobs.db.database import Database
from jobs.specs.inference import InferenceSpec
from tests.conftest import wait_until
from tests.support import tiny, tiny_media
from tests.support.rows import embedding_spec, varied_rows, write_rows
from tests.support.stack import QUICK, stack
from tests.support.task_kit import TEXTS, load, outputs, same, text_rows
from tests.support.trained import attempt, run_with_kills
from tests.support.training_specs import NUM_STEPS, encoder_spec, module_spec
from worker.host.slots import find_devices
from worker.inference.budget import Budget
from worker.inference.engine import InferenceEngine
from worker.inference.padding_verdicts import is_packed, settle_padding
from worker.models.model_ref import ModelRef

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
def test_computedare_those_of_the_cpu(task: str, build: Any, tmp_path: Path) -> None:
    model, rows = build(tmp_path / "model"), text_rows([text for text in TEXTS if text.strip()])
    expected, found = (outputs(load(task, model, device=torch.device(kind)), rows) for kind in ("cpu", "cuda"))
    for one, other in zip(found, expected, strict=True):
        if task == "embeddings":
            np.testing.assert_allclose(one, other, atol=1e-4)
        else:
            assert same(one, other, tolerance=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("task", "build"),
    [
        ("embeddings", tiny.tiny_encoder),
        ("text-classification", tiny.tiny_classifier),
        ("token-classification", tiny.tiny_tagger),
        ("fill-mask", tiny.tiny_masked_lm),
        ("embeddings", tiny.tiny_causal_lm),
    ],
)
def test_batches_without_padding_equal_padded_ones(task: str, build: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    rows = text_rows([f"{text} [MASK]" for text in TEXTS])
    task_model = load(task, build(tmp_path / "model"), device=CUDA, dtype=dtype)
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        for packs in (False, True, True):
            if is_packed(task_model) is not packs:
                task_model.tokens.padding = task_model.probe_padding(packs=packs)
            assert is_packed(task_model) is packs
            encoded = [one for one in task_model.encode(rows) if one.error is None]
            computed = task_model.forward(task_model.collate(encoded))
            found.append((computed[0] if isinstance(computed, tuple) else computed).float())
    padded, packed, again = found
    assert torch.equal(packed, again)
    if task == "token-classification":  # what is behind a row's tokens means nothing
        lengths = torch.tensor([one.num_tokens for one in encoded], device=CUDA)
        is_token = torch.arange(padded.shape[1], device=CUDA) < lengths[:, None]
        padded, packed = padded[is_token], packed[is_token]
    torch.testing.assert_close(packed, padded, atol=0.1, rtol=0.1)


def test_batches_without_padding_are_the_default_in_16_bits_only(tmp_path: Path, sqlite_database: Database) -> None:
    folder = tiny.tiny_encoder(tmp_path)
    spec = InferenceSpec.model_validate({"task": "embeddings", "model": str(folder), "input": {"path": "rows.jsonl"}})
    for dtype in (torch.float32, torch.bfloat16):
        task_model = load("embeddings", folder, device=CUDA, dtype=dtype)
        task_model.tokens.padding = None
        settle_padding(task_model, ModelRef.of(spec), "job", database=sqlite_database, device=CUDA)
        assert is_packed(task_model) is (dtype == torch.bfloat16)


@pytest.mark.parametrize(
    ("task", "build", "parameters"),
    [
        ("image-classification", tiny.tiny_image_classifier, {}),
        ("image-segmentation", tiny_media.tiny_segmenter, {}),
        ("zero-shot-image-classification", tiny_media.tiny_clip, {"candidate_labels": ["a fox", "code"]}),
        ("embeddings", tiny_media.tiny_clip, {}),
    ],
)
def test_images_go_to_the_device_as_bytes(task: str, build: Any, parameters: dict[str, Any], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((64, 48), (20, 333), (700, 301))
    ]
    model, rows = build(tmp_path / "model"), [Row(place, None, {"image": one}) for place, one in enumerate(images)]
    on_device = load(task, model, parameters, device=CUDA)
    for encoded in on_device.encode(rows):
        [item] = encoded.features if task == "embeddings" else encoded.features.items
        assert item["pixel_values"].dtype == torch.uint8
    for one, other in zip(outputs(on_device, rows), outputs(load(task, model, parameters), rows), strict=True):
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
        pieces = InferenceEngine(task, CUDA, budget).compute([encoded], [None], lambda: None)
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
    spec = {**(encoder_spec if trainer == "transformers" else module_spec)(tmp_path), "dtype": dtype}
    calm = attempt(tmp_path / "calm", spec, device="cuda")
    assert list(calm.losses) == list(range(1, NUM_STEPS + 1))
    attempts = run_with_kills(tmp_path / "killed", spec, device="cuda")
    recorded: dict[int, str] = {}
    for each in attempts:
        recorded |= each.losses
    assert recorded == calm.losses
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
