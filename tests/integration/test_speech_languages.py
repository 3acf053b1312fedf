"""A multilingual Whisper detects, transcribes and translates each sound as `generate` does for the sound alone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

from jobs.config.settings import Settings
from jobs.data.rows import Row
from jobs.db.database import Database
from jobs.errors import InvalidSpec
from tests.support import tiny_media
from tests.support.batch_scheduler import BatchScheduler
from tests.support.computed_batches import ComputedBatches
from tests.support.live_api import live_api
from tests.support.task_kit import load, same
from tests.support.through_engine import compute

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, of models with random weights
TASK = "automatic-speech-recognition"
_random = np.random.default_rng(0)
SOUNDS = [
    (_random.standard_normal(size) * np.sin(np.arange(size) * pitch / 16_000)).astype(np.float32) * 0.2
    for size, pitch in ((16_000, 1), (24_000, 900), (48_000, 4000), (16_000, 9000), (32_000, 20_000))
]
ROWS = [Row(index, None, {"audio": sound}) for index, sound in enumerate(SOUNDS)]
OPTIONS = [{}, {"task": "translate"}, {"language": "fr"}, {"language": "french", "task": "translate"}]


@pytest.fixture(scope="module")
def linguist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper model with the languages of OpenAI's; its strong cross-attention makes it detect several."""
    folder = tiny_media.tiny_whisper(tmp_path_factory.mktemp("linguist"), languages=tiny_media.ALL_LANGUAGES)
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if name.endswith("encoder_attn.out_proj.weight"):
            weight *= 5
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def by_generate(folder: Path, options: dict[str, Any]) -> list[str]:
    """The text of each sound by the model's own `generate`, one sound at a time."""
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    processor = WhisperProcessor.from_pretrained(folder)
    texts = []
    for sound in SOUNDS:
        features = processor(sound, sampling_rate=16_000, return_tensors="pt").input_features
        texts += processor.batch_decode(model.generate(features, **options), skip_special_tokens=True)
    return texts


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("own", OPTIONS, ids=str)
def test_texts_equal_those_of_each_sound_alone(own: dict[str, Any], num_beams: int, linguist: Path) -> None:
    options = {**own, "num_beams": num_beams}
    computed = compute(load(TASK, linguist, options), ROWS)
    assert computed.is_shared
    texts = [output["text"] for output in computed.outputs]
    assert texts == by_generate(linguist, options)
    reference = pipeline(TASK, model=str(linguist), device="cpu", dtype=torch.float32)
    assert same(computed.outputs, [reference(sound.copy(), generate_kwargs=options) for sound in SOUNDS])
    assert len(set(texts)) > 1


def test_options_change_the_texts(linguist: Path) -> None:
    found = [compute(load(TASK, linguist, {"num_beams": 1, **own}), ROWS).outputs for own in OPTIONS]
    assert all(one != other for number, one in enumerate(found) for other in found[:number])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_several_languages_are_detected_in_one_batch(num_beams: int, linguist: Path) -> None:
    computed = compute(load(TASK, linguist, {"num_beams": num_beams, "return_language": True}), ROWS)
    reference = pipeline(TASK, model=str(linguist), device="cpu", dtype=torch.float32)
    options = {"num_beams": num_beams}
    expected = [reference(sound.copy(), return_language=True, generate_kwargs=options) for sound in SOUNDS]
    assert same(computed.outputs, expected)
    assert len(computed.batches) == 1
    assert len({output["chunks"][0]["language"] for output in computed.outputs}) > 1


@pytest.mark.parametrize(
    ("own", "reason"),
    [({"language": "xx"}, "does not support the language 'xx'"), ({"task": "sing"}, "must be one of")],
)
def test_unknown_languages_and_tasks_are_refused(own: dict[str, str], reason: str, linguist: Path) -> None:
    with pytest.raises(InvalidSpec, match=reason) as refused:
        load(TASK, linguist, own)
    assert refused.value.param == f"parameters.{next(iter(own))}"


@pytest.fixture
def ear(linguist: Path, settings: Settings, sqlite_database: Database) -> Iterator[ComputedBatches]:
    scheduler = BatchScheduler(sqlite_database, settings, {"ear": {"model": str(linguist)}})
    with live_api(scheduler.settings, sqlite_database) as api:
        yield ComputedBatches(api.url, scheduler, "ear", linguist, {"num_beams": 1})


@pytest.mark.parametrize(
    ("endpoint", "form", "own"),
    [
        ("transcriptions", {}, {}),
        ("transcriptions", {"language": "fr"}, {"language": "fr"}),
        ("translations", {}, {"task": "translate"}),
    ],
    ids=["detected", "french", "translated"],
)
def test_lines_of_batches_equal_each_sound_alone(
    endpoint: str, form: dict[str, str], own: dict[str, str], ear: ComputedBatches, linguist: Path, tmp_path: Path
) -> None:
    reference = pipeline(TASK, model=str(linguist), device="cpu", dtype=torch.float32)
    bodies, expected = [], []
    for sound in SOUNDS:
        data = base64.b64encode(tiny_media.write_wav(tmp_path / "sound.wav", sound, 16_000).read_bytes()).decode()
        bodies.append({"file": f"data:audio/wav;base64,{data}", "response_format": "verbose_json", **form})
        stored = ((sound * 2**15).round() / 2**15).astype(np.float32)
        options = {"return_timestamps": True, "return_language": True, "generate_kwargs": {**own, "num_beams": 1}}
        expected.append(reference(stored, **options))
    with ear.client("mine") as mine:
        batch = ear.run(mine, f"/v1/audio/{endpoint}", bodies)
        found = [body for _, body in sorted(ear.bodies(mine, batch).items())]
    assert [body["text"] for body in found] == [alone["text"].strip() for alone in expected]
    detected = [alone["chunks"][0]["language"] for alone in expected]
    assert [body["language"] for body in found] == (["english"] * 5 if endpoint == "translations" else detected)
    assert endpoint == "translations" or (len(set(detected)) > 1) == (not form)
