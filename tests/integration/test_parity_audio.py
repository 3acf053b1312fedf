"""Sounds of mixed lengths, batched by the engine, give the library's outputs for each alone, in every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor, pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

from jobs.data.rows import Row
from tests.support.architectures import save_small, small_config
from tests.support.task_kit import load, same
from tests.support.through_engine import compute
from tests.support.tiny import WAVE_CONVOLUTIONS

_random = np.random.default_rng(0)
SOUNDS = [
    (_random.standard_normal(size) * np.linspace(0.05, 0.5, size)).astype(np.float32)
    for size in (4000, 6000, 4000, 5000, 6000, 3200)
]
"""Sounds of several lengths, and some of equal length with other content."""
_LAYER = {**WAVE_CONVOLUTIONS, "feat_extract_norm": "layer"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "data2vec-audio": ("data2vec-audio", {**WAVE_CONVOLUTIONS, "conv_pos_kernel_size": 7}),
    "hubert": ("hubert", WAVE_CONVOLUTIONS),
    "hubert with layer norm": ("hubert", {**_LAYER, "do_stable_layer_norm": True}),
    "sew": ("sew", WAVE_CONVOLUTIONS),
    "unispeech": ("unispeech", WAVE_CONVOLUTIONS),
    "unispeech-sat": ("unispeech-sat", WAVE_CONVOLUTIONS),
    "wav2vec2": ("wav2vec2", WAVE_CONVOLUTIONS),
    "wav2vec2 with layer norm": ("wav2vec2", {**_LAYER, "do_stable_layer_norm": True}),
    "wav2vec2-conformer": ("wav2vec2-conformer", WAVE_CONVOLUTIONS),
    "wavlm": ("wavlm", WAVE_CONVOLUTIONS),
    "audio-spectrogram-transformer": ("audio-spectrogram-transformer", {"max_length": 128, "num_mel_bins": 32}),
    "whisper": ("whisper", {"init_std": 0.1, "num_mel_bins": 16, "max_source_positions": 100}),
}


def _extractor(name: str) -> Any:
    if name == "audio-spectrogram-transformer":
        return ASTFeatureExtractor(max_length=128, num_mel_bins=32)
    if name == "whisper":
        return WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    return Wav2Vec2FeatureExtractor(return_attention_mask="layer" in name)


@pytest.mark.parametrize("name", CASES)
def test_rows_of_mixed_lengths_equal_the_library_row_by_row(name: str, tmp_path: Path) -> None:
    model_type, own = CASES[name]
    extractor = _extractor(name)
    model = save_small(
        tmp_path, getattr(transformers, CLASSIFIERS[model_type]), small_config(model_type, **own), extractor
    )
    reference = pipeline("audio-classification", model=model, feature_extractor=extractor)
    expected = [reference(sound.copy(), top_k=None) for sound in SOUNDS]
    computed = compute(
        load("audio-classification", tmp_path, {"top_k": None}),
        [Row(index, None, {"audio": sound.copy()}) for index, sound in enumerate(SOUNDS)],
    )
    assert all(same(one, other) for one, other in zip(computed.outputs, expected, strict=True)), computed.outputs
    assert not all(same(one, expected[0], tolerance=1e-4) for one in expected[1:]), "equal answers would show nothing"
    assert computed.is_shared
