"""A real Whisper model hears recorded sentences: from every container, and in batches as in each sound alone."""

from __future__ import annotations

import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import pipeline

from jobs.data.rows import Row
from jobs.errors import InvalidSpec
from tests.support.real_speech import RATE, SENTENCES, real_whisper, recording, write_sound
from tests.support.task_kit import load, same
from tests.support.through_engine import Computed, compute
from tests.support.tiny import tiny_ctc
from worker.models.media.resampling import resample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the library's own, about how it is called
]
TASK = "automatic-speech-recognition"
CONTAINERS = [
    ("wav", "pcm_s16le", 8000, "mono"),
    ("flac", "flac", 44_100, "stereo"),
    ("mp3", "libmp3lame", 44_100, "mono"),
    ("ogg", "libopus", 48_000, "stereo"),
    ("opus", "libopus", 16_000, "mono"),
    ("m4a", "aac", 22_050, "mono"),
    ("webm", "libopus", 48_000, "mono"),
]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av", reason="the extra audio, which has PyAV, is not installed")
    return real_whisper(tmp_path_factory.mktemp("whisper"))


def words(text: str) -> str:
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def hear(whisper: Path, sounds: list[Any], **parameters: Any) -> Computed:
    rows = [Row(index, None, {"audio": sound}) for index, sound in enumerate(sounds)]
    return compute(load(TASK, whisper, {"num_beams": 1, **parameters}), rows)


def talk() -> np.ndarray:
    """Sentences with pauses between them, longer than the 30 seconds of the model's window."""
    names = ("dog", "library", "window", "dog", "library", "dog", "window")
    pause = np.zeros(RATE, np.float32)
    return np.concatenate([part for name in names for part in (recording(name), pause)])


def test_every_container_is_heard_without_ffmpeg(
    whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert shutil.which("ffmpeg") is None
    paths = []
    for suffix, codec, rate, layout in CONTAINERS:
        samples = resample(recording("library"), RATE, rate)
        assert isinstance(samples, np.ndarray)
        paths.append(str(write_sound(tmp_path / f"sound.{suffix}", samples, rate, codec, layout)))
    found = hear(whisper, paths, return_info=True).outputs
    for (suffix, *_), output in zip(CONTAINERS, found, strict=True):
        assert words(output["text"]) == SENTENCES["library"], suffix
        assert output["duration"] == pytest.approx(recording("library").size / RATE, abs=0.1), suffix
        assert output["language"] == "english"


@pytest.mark.parametrize(
    ("parameters", "sounds"),
    [
        ({"num_beams": 2}, ["dog", "window", "library", "window"]),
        ({"return_timestamps": True}, ["talk", "window"]),
        ({"return_timestamps": True, "chunk_length_s": 30}, ["window", "talk"]),
        ({"return_timestamps": "word"}, ["library", "window"]),
    ],
    ids=["texts", "segments", "chunks", "words"],
)
def test_sounds_in_batches_are_heard_as_alone(whisper: Path, parameters: dict[str, Any], sounds: list[str]) -> None:
    samples = {name: talk() if name == "talk" else recording(name) for name in sounds}
    num_beams = parameters.get("num_beams", 1)
    options = {name: value for name, value in parameters.items() if name != "num_beams"}
    reference = pipeline(TASK, model=str(whisper), device="cpu", dtype=torch.float32)
    expected = {
        name: reference(sound.copy(), generate_kwargs={"num_beams": num_beams}, **options)
        for name, sound in samples.items()
    }
    assert words(expected["window"]["text"]) == SENTENCES["window"]
    computed = hear(whisper, [samples[name] for name in sounds], **parameters)
    for name, output in zip(sounds, computed.outputs, strict=True):
        assert same(output, expected[name]), (name, output, expected[name])
    # The times of words depend on a batch's longest row, so these rows are computed alone.
    assert computed.is_shared is (parameters != {"return_timestamps": "word"})


@pytest.mark.parametrize(
    "own", [pytest.param({}, marks=pytest.mark.soak), {"vad": True}], ids=["whole", "without pauses"]
)
def test_words_and_segments_come_from_one_hearing(whisper: Path, own: dict[str, Any]) -> None:
    sounds = [talk(), recording("library"), np.zeros(RATE, np.float32)]
    by_word, by_segment, both = (
        hear(whisper, sounds, **own, **options).outputs
        for options in (
            {"return_timestamps": "word"},
            {"return_timestamps": True},
            {"return_timestamps": "word", "return_segments": True},
        )
    )
    assert [output.pop("segments") for output in both] == [output["chunks"] for output in by_segment]
    assert both == by_word


def test_only_whisper_finds_words_and_segments(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"^parameters\.return_segments: only a Whisper model"):
        load(TASK, tiny_ctc(tmp_path / "ctc"), {"return_timestamps": "word", "return_segments": True})
