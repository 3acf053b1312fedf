"""On a CPU, a model that generates computes its encoder for a few rows at a time, and generates for many at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from jobs.data.rows import Row
from tests.support import tiny_media
from tests.support.task_kit import load
from tests.support.tiny import tiny_ctc
from worker.inference.pipelines import encoder_parts
from worker.inference.pipelines.encoder_parts import compute_encoder_in_parts

TASK = "automatic-speech-recognition"
NUM_ROWS = 5


@pytest.mark.parametrize("more", [{}, {"output_hidden_states": True, "output_attentions": True}], ids=["plain", "all"])
def test_the_parts_of_an_encoder_give_what_the_whole_gives(
    more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_media.tiny_whisper(tmp_path / "whisper")
    model = WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    length = model.config.max_source_positions * 2
    features = torch.randn(NUM_ROWS, model.config.num_mel_bins, length, generator=generator)
    inputs = {"input_features": features, "attention_mask": torch.ones(NUM_ROWS, length, dtype=torch.long), **more}
    layer_rows: list[int] = []
    layer = model.get_encoder().layers[0]
    layer.register_forward_pre_hook(lambda _, arguments: layer_rows.append(len(arguments[0])))
    with torch.inference_mode():
        whole = model.get_encoder()(**inputs)
        compute_encoder_in_parts(model)
        monkeypatch.setattr(encoder_parts, "CPU_MAX_TOKENS", 2 * encoder_parts.num_tokens(
            {"input_features": features[:1]}, model.config
        ))  # fmt: skip
        parts = model.get_encoder()(**inputs)
    assert layer_rows[1:] == [2, 2, 1]
    assert set(parts) == set(whole)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-6, atol=1e-5)


def test_rows_within_the_budget_are_generated_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(TASK, tiny_media.tiny_whisper(tmp_path / "whisper"), {"num_beams": 1})
    monkeypatch.setattr(model, "_most_tokens", 1)
    sounds = np.random.default_rng(0).standard_normal((NUM_ROWS, 16_000)).astype(np.float32) / 10
    encoded = model.encode([Row(index, None, {"audio": sound}) for index, sound in enumerate(sounds)])
    [group] = model.collate(encoded)
    assert len(group.places) == NUM_ROWS


def test_only_models_that_generate_take_large_batches(tmp_path: Path) -> None:
    assert load(TASK, tiny_media.tiny_whisper(tmp_path / "whisper")).generates
    assert not load(TASK, tiny_ctc(tmp_path / "ctc")).generates
