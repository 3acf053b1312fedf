"""Every other task gives what its pipeline gives for the same row."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from transformers import pipeline

from jobs.errors import InvalidModel, InvalidSpec
from jobs.rows import Row
from jobs.settings import Settings
from tests.task_kit import LONG_TEXT, TEXTS, error_codes, load, outputs, same, text_rows
from tests.tiny import tiny_causal_lm, tiny_classifier, tiny_ctc, tiny_encoder, tiny_image_classifier


def _pipeline(task: str, model: Path) -> Any:
    return pipeline(task, model=str(model), device="cpu", dtype=torch.float32)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Files of three images of different sizes and kinds."""
    image_module = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    paths = []
    for index, (shape, kind) in enumerate((((40, 30, 3), "png"), ((64, 80), "png"), ((33, 32, 4), "webp"))):
        path = tmp_path / f"image-{index}.{kind}"
        image_module.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def test_image_classification_from_files(tmp_path: Path, images: list[Path]) -> None:
    """Images would get other labels, or a broken one would end the job."""
    model = tiny_image_classifier(tmp_path / "model")
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:100])
    values = [*map(str, images), str(broken), str(tmp_path / "absent.png"), "https://example.com/a.png"]
    rows = [Row(index, None, {"image": value}) for index, value in enumerate(values)]
    reference = _pipeline("image-classification", model)
    for parameters in ({}, {"top_k": 2}, {"top_k": 3, "function_to_apply": "sigmoid"}):
        results = outputs(load("image-classification", model, parameters), rows)
        assert all(map(same, results[:3], [reference(str(path), **parameters) for path in images]))
        assert error_codes(results[3:]) == ["invalid_image", "missing_file", "url_not_allowed"]
        assert orjson.loads(orjson.dumps(results[:3])) == results[:3]


def test_images_from_a_table(tmp_path: Path, images: list[Path]) -> None:
    """Images that lie in the data itself could not be used."""
    from PIL import Image

    model = tiny_image_classifier(tmp_path / "model")
    url = f"data:image/png;base64,{base64.b64encode(images[0].read_bytes()).decode()}"
    lazy = Image.open(io.BytesIO(images[0].read_bytes()))
    rows = [Row(index, None, {"image": value}) for index, value in enumerate((str(images[0]), url, lazy))]
    results = outputs(load("image-classification", model), rows)
    assert all(same(result, results[0]) for result in results)


def test_files_outside_the_roots_are_not_opened(tmp_path: Path, images: list[Path]) -> None:
    """A row could show any file of the machine that happens to be an image."""
    model = tiny_image_classifier(tmp_path / "roots" / "model")
    (tmp_path / "roots" / "link.png").symlink_to(images[0])
    settings = Settings(input_roots=[tmp_path / "roots"])
    values = (str(images[0]), str(tmp_path / "roots" / "link.png"), f"file://{images[0]}")
    rows = [Row(index, None, {"image": value}) for index, value in enumerate(values)]
    results = outputs(load("image-classification", model, settings=settings), rows)
    assert error_codes(results) == ["forbidden_path"] * 3


def test_feature_extraction(tmp_path: Path) -> None:
    """The vectors of a batch's padding would stand in the outputs of its shorter rows."""
    model = tiny_encoder(tmp_path)
    reference = _pipeline("feature-extraction", model)
    results = outputs(load("feature-extraction", model), text_rows([*TEXTS, LONG_TEXT]))
    assert all(map(same, results, [reference(text) for text in TEXTS]))
    assert error_codes(results[-1:]) == ["row_too_long"]
    cut = outputs(load("feature-extraction", model, {"truncation": True}), text_rows([LONG_TEXT, "short"]))
    assert all(map(same, cut, [reference(text, truncation=True) for text in (LONG_TEXT, "short")]))


def test_zero_shot_classification(tmp_path: Path) -> None:
    """Labels of the job, and labels of a row, would be mixed up."""
    model = tiny_classifier(tmp_path)
    config = json.loads((model / "config.json").read_text())
    names = ("contradiction", "neutral", "entailment")
    config["id2label"] = dict(enumerate(names))
    config["label2id"] = {name: index for index, name in enumerate(names)}
    (model / "config.json").write_text(json.dumps(config))
    reference = _pipeline("zero-shot-classification", model)
    texts = [text for text in TEXTS[:10] if text.strip()]
    parameters = {"candidate_labels": ["animals", "people", "code"], "hypothesis_template": "It is about {}."}
    for multi_label in (False, True):
        chosen = {**parameters, "multi_label": multi_label}
        results = outputs(load("zero-shot-classification", model, chosen), text_rows(texts))
        assert all(map(same, results, [reference(text, **chosen) for text in texts]))
    rows = [
        Row(0, None, {"text": "a", "candidate_labels": ["x", "y"]}),
        Row(1, None, {"text": "b", "candidate_labels": ["y", "z"]}),
        Row(2, None, {"text": "c"}),
    ]
    results = outputs(load("zero-shot-classification", model, {"candidate_labels": "p,q"}), rows)
    assert all(map(same, results, [reference("a", ["x", "y"]), reference("b", ["y", "z"]), reference("c", ["p", "q"])]))


def test_speech_recognition_of_samples(tmp_path: Path) -> None:
    """Sound that lies in the data itself could not be used, or a second try at a batch would find it taken apart."""
    model = tiny_ctc(tmp_path)
    random = np.random.default_rng(0)
    sounds = [random.standard_normal(size).astype(np.float32) for size in (4000, 6000)]
    rows = [
        Row(i, None, {"audio": {"array": sound.tolist(), "sampling_rate": 16_000}}) for i, sound in enumerate(sounds)
    ]
    task_model = load("automatic-speech-recognition", model)
    reference = _pipeline("automatic-speech-recognition", model)
    expected = [reference(sound) for sound in sounds]
    assert all(map(same, outputs(task_model, rows, batch_rows=1), expected))
    batch = task_model.encode(rows[:1])
    first = task_model.forward(task_model.collate(batch))
    assert task_model.decode(batch, first) == task_model.decode(batch, task_model.forward(task_model.collate(batch)))


@pytest.mark.parametrize(
    ("task", "build", "parameters", "param"),
    [
        ("feature-extraction", tiny_encoder, {"truncate": True}, "truncate"),
        ("text-generation", tiny_causal_lm, {"max_new_token": 5}, "max_new_token"),
        ("text-generation", tiny_causal_lm, {"custom_generate": "some/repository"}, "custom_generate"),
        ("automatic-speech-recognition", tiny_ctc, {"trust_remote_code": True}, "trust_remote_code"),
        (
            "feature-extraction",
            tiny_encoder,
            {"tokenize_kwargs": {"a": [{"trust_remote_code": 1}]}},
            "tokenize_kwargs.trust_remote_code",
        ),
        ("image-classification", tiny_image_classifier, {"topk": 5}, "topk"),
        ("zero-shot-classification", tiny_classifier, {"labels": ["a"]}, "labels"),
    ],
)
def test_unknown_parameters_are_refused(
    tmp_path: Path, task: str, build: Any, parameters: dict[str, Any], param: str
) -> None:
    """A misspelt parameter would be ignored; one that loads code from elsewhere would be obeyed."""
    if task == "image-classification":
        pytest.importorskip("PIL.Image")
    with pytest.raises(InvalidSpec) as caught:
        load(task, build(tmp_path), parameters)
    assert caught.value.param == f"parameters.{param}"


def test_models_of_another_task_are_refused(tmp_path: Path) -> None:
    """A head of random weights would answer."""
    with pytest.raises(InvalidModel, match="no trained weights for"):
        load("text-generation", tiny_encoder(tmp_path / "encoder"))
    with pytest.raises(InvalidModel, match="does not have for automatic-speech-recognition"):
        load("automatic-speech-recognition", tiny_causal_lm(tmp_path / "causal"))
    with pytest.raises(InvalidModel, match="no tokenizer"):
        load("feature-extraction", tiny_image_classifier(tmp_path / "image"))
