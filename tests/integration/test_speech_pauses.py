"""With `vad`, speech recognition leaves out long pauses, and its times are those of the whole recording."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.data.rows import Row
from jobs.errors import InvalidSpec
from jobs.specs.packages import SILERO
from tests.support.real_speech import RATE, SENTENCES, real_whisper, recording
from tests.support.task_kit import load
from tests.support.through_engine import compute
from tests.support.tiny import tiny_ctc
from worker.models.media import voice
from worker.models.media.voice import Voice, VoiceDetector

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec(SILERO.module) is None and not os.environ.get("CI"),
        reason="the extra vad, which has silero-vad, is not installed",
    ),
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
]
TASK = "automatic-speech-recognition"


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def noise(seconds: float) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(int(seconds * RATE)) / 500).astype(np.float32)


def with_pauses() -> np.ndarray:
    """Two sentences: one from 4 s on, for 3.6 s, and one from 12.6 s on, for 1.9 s."""
    return np.concatenate([noise(4), recording("library"), noise(5), recording("window"), noise(3)])


def test_speech_is_found_and_torch_keeps_its_threads(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the package sets torch to one thread."""
    voice._import_silero.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == SILERO.module]:
        monkeypatch.delitem(sys.modules, name)
    detector = VoiceDetector("parameters.vad")
    assert torch.get_num_threads() == 2
    sound = with_pauses()
    starts = (4, 9 + recording("library").size / RATE)
    ends = [start + recording(name).size / RATE for start, name in zip(starts, ("library", "window"), strict=True)]
    for samples in (sound, np.stack([sound, sound])):
        found = detector.find(samples, RATE)
        assert [start / RATE for start, _ in found.parts] == pytest.approx(starts, abs=0.6)
        assert [stop / RATE for _, stop in found.parts] == pytest.approx(ends, abs=0.6)
        assert found.joined(samples).shape[-1] == sum(stop - start for start, stop in found.parts)
    assert detector.find(noise(3), RATE).parts == []
    assert detector.find(noise(0.001), RATE).parts == []
    assert detector.find(sound[::2], RATE // 2).parts[0][0] / (RATE // 2) == pytest.approx(4, abs=0.6)


def test_probabilities_do_not_depend_on_the_size_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VoiceDetector("parameters.vad")._model
    expected = model.probabilities(recording("window"))
    monkeypatch.setattr(voice, "_AT_ONCE", 7)
    assert model.probabilities(recording("window")) == pytest.approx(expected, abs=1e-5)


def test_times_are_those_of_the_whole_sound() -> None:
    found = Voice([(1000, 2000), (5000, 5500), (9000, 10_000)], rate=1000)
    starts = [time + found.shift_seconds(time) for time in (0.0, 0.9, 1.0, 1.2, 1.5, 2.4)]
    assert starts == pytest.approx([1.0, 1.9, 5.0, 5.2, 9.0, 9.9])
    ends = [time + found.shift_seconds(time, is_end=True) for time in (0.0, 0.9, 1.0, 1.2, 1.5, 2.5)]
    assert ends == pytest.approx([1.0, 1.9, 2.0, 5.2, 5.5, 10.0])


def test_a_sound_without_speech_has_an_empty_text(tmp_path: Path) -> None:
    model = load(TASK, tiny_ctc(tmp_path / "ctc"), {"vad": True, "return_timestamps": "word", "return_info": True})
    rows = [Row(index, None, {"audio": sound}) for index, sound in enumerate((noise(2), with_pauses(), noise(1)))]
    silent, spoken, last = compute(model, rows).outputs
    assert silent == {"text": "", "chunks": [], "duration": 2, "language": None}
    assert last == {**silent, "duration": 1}
    assert spoken["duration"] == pytest.approx(with_pauses().size / RATE, abs=1e-3)
    assert all(3.4 < start <= end < 15 and not 8.2 < start < 11.9 for start, end in times_of(spoken))


def times_of(output: Any) -> list[tuple[float, float]]:
    return [tuple(chunk["timestamp"]) for chunk in output["chunks"]]


def test_a_real_model_hears_the_sentences_at_their_times(tmp_path: Path) -> None:
    whisper = real_whisper(tmp_path / "whisper")
    rows = [Row(0, None, {"audio": with_pauses()})]
    [found] = compute(load(TASK, whisper, {"num_beams": 1, "vad": True, "return_timestamps": "word"}), rows).outputs
    heard = "".join(letter for letter in found["text"].lower() if letter.isalpha() or letter == " ").split()
    assert heard == f"{SENTENCES['library']} {SENTENCES['window']}".split()
    times = times_of(found)
    assert times[0][0] == pytest.approx(4, abs=0.7)
    num_words = len(SENTENCES["library"].split())
    ends, goes_on = times[num_words - 1][1], times[num_words][0]
    assert ends == pytest.approx(4 + recording("library").size / RATE, abs=1)
    assert goes_on == pytest.approx(9 + recording("library").size / RATE, abs=1)


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_ctc(tmp_path / "ctc")
    monkeypatch.setattr(voice.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidSpec, match=r"^parameters\.vad: .* silero-vad, .* \(pip install 'stoker\[vad\]'\) and "):
        load(TASK, folder, {"vad": True})
