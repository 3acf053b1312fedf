"""Speech recognition reports each sound's own language and duration, whichever other sounds share its batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from jobs.data.rows import Row
from tests.support import tiny_media
from tests.support.task_kit import load, same
from tests.support.through_engine import compute
from tests.support.tiny import tiny_ctc

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, of models with random weights
TASK = "automatic-speech-recognition"
_TONE = np.sin(np.arange(30_000) * 2 * np.pi * 100 / 16_000) * 0.3
_random = np.random.default_rng(0)
SOUNDS = [
    sound.astype(np.float32)
    for sound in (_random.standard_normal(16_000) / 10, _TONE, _random.standard_normal(60_000) / 10)
]
"""Noise, a tone, and noise that is longer than the models' window of three seconds."""
ROWS = [Row(index, None, {"audio": sound}) for index, sound in enumerate(SOUNDS)]


def linguist(folder: Path) -> Path:
    """A Whisper model that takes noise for German and the tone for English: it has strong cross-attention."""
    file = tiny_media.tiny_whisper(folder, languages=True) / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if name.endswith("encoder_attn.out_proj.weight"):
            weight *= 5
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("times", [{"return_timestamps": True}, {}], ids=["times", "texts"])
def test_languages_equal_those_of_each_sound_alone(num_beams: int, times: dict[str, bool], tmp_path: Path) -> None:
    folder = linguist(tmp_path / "linguist")
    reference = pipeline(TASK, model=str(folder), device="cpu", dtype=torch.float32)
    rows = ROWS if times else ROWS[:2]  # the pipeline alone needs timestamps for a long sound
    parameters = {"return_language": True, **times}
    expected = [
        reference(row.values["audio"].copy(), generate_kwargs={"num_beams": num_beams}, **parameters) for row in rows
    ]
    computed = compute(load(TASK, folder, {"num_beams": num_beams, **parameters}), rows)
    assert same(computed.outputs, expected), (computed.outputs, expected)
    assert {output["chunks"][0]["language"] for output in expected} == {"english", "german"}
    assert computed.is_shared


@pytest.mark.parametrize("own", [{"return_timestamps": True}, {"return_language": True}], ids=["times", "languages"])
def test_information_about_a_sound_changes_nothing_else(own: dict[str, Any], tmp_path: Path) -> None:
    own = {"num_beams": 1, **own}
    folders = {
        linguist(tmp_path / "two"): {"english", "german"},
        tiny_media.tiny_whisper(tmp_path / "one"): {"english"},
    }
    for folder, languages in folders.items():
        found = compute(load(TASK, folder, {**own, "return_info": True}), ROWS).outputs
        assert [output.pop("duration") for output in found] == [1, 1.875, 3.75]
        assert {output.pop("language") for output in found} == languages
        assert same(found, compute(load(TASK, folder, own), ROWS).outputs)


def test_a_model_without_languages_reports_none(tmp_path: Path) -> None:
    [found] = compute(load(TASK, tiny_ctc(tmp_path / "ctc"), {"return_info": True}), ROWS[:1]).outputs
    assert (found["duration"], found["language"]) == (1, None)
