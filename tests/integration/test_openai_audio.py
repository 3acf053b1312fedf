"""Sounds in OpenAI batches: the unmodified SDK, the API, the scheduler's duties and a real tiny Whisper."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai.types.audio import TranscriptionVerbose

from jobs.config.settings import Settings
from jobs.data.rows import Row
from jobs.db.database import Database
from tests.support import tiny_media
from tests.support.batch_scheduler import BatchScheduler
from tests.support.computed_batches import ComputedBatches
from tests.support.live_api import live_api
from tests.support.task_kit import load
from tests.support.through_engine import compute

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, of models with random weights
TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
MAX_ROW_BYTES = 200_000


@pytest.fixture
def speech(settings: Settings, sqlite_database: Database, tmp_path: Path) -> Iterator[ComputedBatches]:
    folder = tiny_media.tiny_whisper(tmp_path / "whisper", languages=True)
    changed = settings.model_copy(update={"max_row_bytes": MAX_ROW_BYTES})
    scheduler = BatchScheduler(sqlite_database, changed, {"ear": {"model": str(folder)}})
    with live_api(scheduler.settings, sqlite_database) as api:
        yield ComputedBatches(api.url, scheduler, "ear", folder, {"num_beams": 1})


def wav(folder: Path, seconds: float, seed: int = 0) -> bytes:
    """The bytes of a WAV file with noise."""
    samples = np.random.default_rng(seed).standard_normal(int(16_000 * seconds)) * 0.1
    return tiny_media.write_wav(folder / "sound.wav", samples.astype(np.float32), 16_000).read_bytes()


def data_url(content: bytes) -> str:
    return "data:audio/wav;base64," + base64.b64encode(content).decode()


def upload(client: openai.OpenAI, content: bytes, name: str = "sound.wav", purpose: Any = "input") -> str:
    return client.files.create(file=(name, content), purpose=purpose).id


def test_every_format_comes_back_for_data_and_for_a_file(speech: ComputedBatches, tmp_path: Path) -> None:
    with speech.client("mine") as mine:
        content = wav(tmp_path, 2)
        file, sound = upload(mine, content), data_url(content)
        forms = [
            {},
            {"response_format": "text"},
            {"response_format": "srt"},
            {"response_format": "vtt"},
            {"response_format": "verbose_json"},
            {"response_format": "verbose_json", "timestamp_granularities": ["word"], "language": "de"},
            {"response_format": "verbose_json", "timestamp_granularities": ["segment", "word"]},
        ]
        batch = speech.run(mine, TRANSCRIPTIONS, [{"file": one, **form} for form in forms for one in (sound, file)])
        assert (batch.state, batch.num_completed, batch.num_failed) == ("completed", 14, 0)
        found = [body for _, body in sorted(speech.bodies(mine, batch).items(), key=lambda item: int(item[0]))]
        assert found[::2] == found[1::2], "an uploaded file is the same as its data"
        simple, text, srt, vtt, verbose, words, both = found[::2]
        (expected,) = compute(
            load("automatic-speech-recognition", speech.folder, {"num_beams": 1}), [Row(0, None, {"audio": sound})]
        ).outputs
        assert simple == {"text": text} == {"text": expected["text"].strip()}
        assert isinstance(srt, str)
        assert vtt.startswith("WEBVTT\n")
        facts = {"task", "language", "duration", "text", "usage"}
        assert (set(verbose), set(words)) == ({*facts, "segments"}, {*facts, "words"})
        assert (verbose["duration"], verbose["language"], words["language"]) == (2, "english", "german")
        assert verbose["usage"] == {"type": "duration", "seconds": 2}
        assert TranscriptionVerbose.model_validate(words).words is not None
        assert both == {**verbose, "words": both["words"]}
        usage = mine.batches.retrieve(batch.id).usage
        assert usage is None or usage.total_tokens == 0


def test_translations_tell_the_model_to_translate(speech: ComputedBatches, tmp_path: Path) -> None:
    with speech.client("mine") as mine:
        body = {"file": data_url(wav(tmp_path, 1)), "response_format": "verbose_json"}
        batch = speech.run(mine, TRANSLATIONS, [body])
        (job,) = speech.scheduler.jobs(batch)
        assert job.spec["parameters"]["task"] == "translate"
        answer = speech.bodies(mine, batch)["0"]
        assert (answer["task"], answer["language"]) == ("translate", "english")


def test_a_language_that_the_model_does_not_know_is_named(speech: ComputedBatches, tmp_path: Path) -> None:
    with speech.client("mine") as mine:
        file = data_url(wav(tmp_path, 1))
        batch = speech.run(mine, TRANSCRIPTIONS, [{"file": file, "language": "fr"}, {"file": file, "language": "de"}])
        assert (batch.num_completed, batch.num_failed) == (1, 1)
        found = speech.bodies(mine, batch)
        assert found["0"]["param"] == "language"
        assert found["0"]["message"] == "language: the model does not support the language 'fr'"
        assert set(found["1"]) == {"text"}


def test_a_sound_longer_than_the_models_window_is_heard(speech: ComputedBatches, tmp_path: Path) -> None:
    with speech.client("mine") as mine:
        batch = speech.run(mine, TRANSCRIPTIONS, [{"file": data_url(wav(tmp_path, 4))}])
        assert set(speech.bodies(mine, batch)["0"]) == {"text"}


def test_files_that_a_line_may_not_name_fail_only_that_line(speech: ComputedBatches, tmp_path: Path) -> None:
    with speech.client("mine") as mine, speech.client("theirs") as theirs:
        content = wav(tmp_path, 1)
        bodies = [
            {"file": upload(mine, content)},
            {"file": upload(theirs, content)},
            {"file": "file_nothing"},
            {"file": upload(mine, content, "lines.jsonl", "batch")},
            {"file": upload(mine, wav(tmp_path, 6))},
            {"file": data_url(b"no sound at all")},
            {"file": data_url(content), "temperature": 1},
        ]
        batch = speech.run(mine, TRANSCRIPTIONS, bodies)
        assert (batch.state, batch.num_completed, batch.num_failed) == ("completed", 1, 6)
        found = speech.bodies(mine, batch)
        assert set(found["0"]) == {"text"}
        assert found["1"]["message"] == f"file: there is no uploaded file '{bodies[1]['file']}'", "of another project"
        assert found["2"]["message"] == "file: there is no uploaded file 'file_nothing'"
        assert found["3"]["message"] == "file: the uploaded file must have the purpose 'input', not 'batch'"
        assert "(setting max_row_bytes)" in found["4"]["message"]
        assert "cannot be read as a sound" in found["5"]["message"]
        assert [found[str(number)]["param"] for number in range(1, 7)] == ["file"] * 5 + ["temperature"]
