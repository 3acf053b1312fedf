"""Text encoders compute batches without padding where that gives the outputs of each row alone, and only there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import select
from torch.nn import functional

from jobs.config.packed_attention import PackedAttention
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.tables import PaddingVerdict
from jobs.specs.inference import InferenceSpec
from tests.support import tiny
from tests.support.task_kit import CPU, load, same, text_rows
from tests.support.through_engine import compute
from worker.inference.padding_verdicts import is_packed, settle_padding
from worker.inference.tasks import load_task_model
from worker.inference.tasks.fill_mask import FillMask
from worker.models.kernels import packed_attention
from worker.models.model_ref import ModelRef
from worker.models.texts.packing import call_model
from worker.models.texts.padding import Padding

TEXTS = [*tiny.SENTENCES, "x", "list", "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3]
BUILDS: dict[str, Callable[[Path], Path]] = {
    "embeddings": tiny.tiny_encoder,
    "text-classification": tiny.tiny_classifier,
    "token-classification": tiny.tiny_tagger,
    "fill-mask": tiny.tiny_masked_lm,
}


def _pack(task_model: Any) -> Any:
    task_model.tokens.padding = task_model.probe_padding(packs=True)
    assert is_packed(task_model)
    return task_model


def _equal(found: Any, expected: Any) -> bool:
    return bool(np.abs(found - expected).max() < 1e-5) if isinstance(expected, np.ndarray) else same(found, expected)


@pytest.mark.parametrize(
    ("task", "parameters"),
    [
        *(("embeddings", {"pooling": pooling}) for pooling in ("mean", "cls", "last_token", "max")),
        ("text-classification", {"top_k": None}),
        ("token-classification", {}),
        ("token-classification", {"stride": 4, "aggregation_strategy": "first", "max_length": 12}),
        ("fill-mask", {}),
    ],
)
def test_every_task_gives_the_outputs_of_padded_batches(task: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    rows = text_rows([f"{text} [MASK] {text[:9]}" for text in TEXTS] if task == "fill-mask" else TEXTS)
    task_model = load(task, BUILDS[task](tmp_path), parameters)
    expected = compute(task_model, rows).outputs
    computed = compute(_pack(task_model), rows)
    assert len(computed.batches) == 1
    assert all(_equal(one, other) for one, other in zip(computed.outputs, expected, strict=True))


def test_rows_with_several_texts_or_token_ids_are_packed(tmp_path: Path) -> None:
    rows = text_rows([TEXTS[0], TEXTS[:4], [5, 6, 7], [[8, 9], [5] * 40]])
    task_model = load("embeddings", tiny.tiny_encoder(tmp_path), {"inputs": "any"})
    expected = compute(task_model, rows).outputs
    found = compute(_pack(task_model), rows).outputs
    assert all(_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_row_that_is_not_finite_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    task_model = _pack(load("embeddings", tiny.tiny_encoder(tmp_path)))
    encoded = task_model.encode(text_rows(["fox " * 9, "dog", "my dog is here"]))
    spoilt = int(encoded[0].features[0]["input_ids"][1])
    task_model.model.get_input_embeddings().weight[spoilt] = float("nan")
    with torch.inference_mode():
        vectors_BE = task_model.forward(task_model.collate(encoded))
    assert vectors_BE.isfinite().all(dim=1).tolist() == [False, True, True]


def test_a_model_whose_rows_reach_each_other_is_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def over_all_rows(query: Any, key: Any, value: Any, *_: Any) -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    task_model = load("fill-mask", tiny.tiny_masked_lm(tmp_path))
    monkeypatch.setattr(packed_attention, "_by_length", over_all_rows)
    assert task_model.probe_padding(packs=True) == Padding.RIGHT
    assert task_model.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_positions_run_through_is_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    task_model = load("embeddings", tiny.tiny_encoder(tmp_path), dtype=dtype)
    packed = task_model.tokens.packed

    def running_through(windows: Any) -> dict[str, torch.Tensor]:
        inputs = packed(windows)
        return {**inputs, "packed_positions": torch.arange(len(inputs["packed_positions"]))}

    monkeypatch.setattr(task_model.tokens, "packed", running_through)
    assert task_model.probe_padding(packs=True) == Padding.RIGHT


def test_a_padded_batch_never_reaches_packed_attention(tmp_path: Path) -> None:
    task_model = _pack(load("embeddings", tiny.tiny_encoder(tmp_path)))
    windows = [one.features[0] for one in task_model.encode(text_rows(TEXTS[:2]))]
    with pytest.raises(ValueError, match="this batch is padded"):
        call_model(task_model.model, task_model.tokens.padded(windows, Padding.RIGHT))


def test_the_next_runner_packs_without_a_test_and_only_if_that_is_set(
    tmp_path: Path, sqlite_database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.tiny_masked_lm(tmp_path)
    spec = InferenceSpec.model_validate({"task": "fill-mask", "model": str(folder), "input": {"path": "rows.jsonl"}})

    def settled(setting: PackedAttention) -> Any:
        task_model = load_task_model(
            ModelRef.of(spec), spec.task_parameters, device=CPU, dtype=torch.float32, rules=settings
        )
        settle_padding(
            task_model, ModelRef.of(spec), "job", database=sqlite_database, device=CPU, packed_attention=setting
        )
        return task_model

    rows = text_rows([f"{text} [MASK]" for text in TEXTS])
    padded = settled(PackedAttention.AUTO)
    assert padded.tokens.padding == Padding.RIGHT
    assert is_packed(settled(PackedAttention.ON))
    with sqlite_database.read() as session:
        assert {one.padding for one in session.scalars(select(PaddingVerdict))} == {"right", "packed"}
    monkeypatch.setattr(FillMask, "probe_padding", lambda *_, **__: pytest.fail("it was tested again"))
    again = settled(PackedAttention.ON)
    expected = compute(padded, rows).outputs
    assert all(same(one, other) for one, other in zip(compute(again, rows).outputs, expected, strict=True))
    assert settled(PackedAttention.OFF).tokens.padding == Padding.RIGHT
