"""Each task that runs through its pipeline gives what the pipeline gives when it is called with the row alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from jobs.data.rows import Row, RowError
from jobs.specs.tasks import ALIASES, REMOVED_TASKS, TASKS
from tests.support import tiny_media
from tests.support.task_kit import CPU, load, same
from tests.support.tiny import CHAT_TEMPLATE, SENTENCES, tiny_causal_lm, tiny_ctc, tiny_encoder, tiny_image_classifier
from worker.inference.budget import Budget
from worker.inference.engine import InferenceEngine
from worker.inference.pipelines import staged, transformers_internals
from worker.inference.pipelines.alone import TASKS_ALONE
from worker.inference.pipelines.calls import CALLS
from worker.inference.tasks import OWN_TASKS, TaskModel
from worker.models.json_values import json_value

Values = Mapping[str, Any]
_random = np.random.default_rng(0)


def _image(width: int, height: int) -> Image.Image:
    # Blocks rather than noise, so that the largest of two scores is not a matter of the last bit.
    blocks = _random.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width])


def _sound(num_samples: int) -> np.ndarray:
    return (_random.standard_normal(num_samples) * 0.1).astype(np.float32)


IMAGES = [_image(40, 30), _image(64, 80), _image(33, 32), _image(40, 30), _image(64, 80)]
SOUNDS = [_sound(size) for size in (4000, 6000, 4000, 5000, 6000)]
LABELS = {"candidate_labels": ["a fox", "code"]}
TWIN = SENTENCES[0].replace("fox", "dog").replace("dog.", "fox.")  # other words, the same number of tokens
TEXTS = [SENTENCES[0], SENTENCES[1], TWIN, "x", SENTENCES[5]]
WORDS = [SENTENCES[0].split(), SENTENCES[1].split(), TWIN.split(), (SENTENCES[7] * 6).split()]


def _first(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    return reference(next(iter(values.values())), **parameters)


def _with_labels(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    labels = values.get("candidate_labels", parameters.get("candidate_labels"))
    return reference(next(iter(values.values())), **{**parameters, "candidate_labels": labels})


def _as_mapping(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    return reference(dict(values), **parameters)


def _pair(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    return reference([values["image"], values["image_pair"]], **parameters)


def _image_and_text(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    return reference(images=values["image"], text=values["text"], **parameters)


def _chat(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    [message] = values["text"]
    parts = [{**part, "image": values["image"]} if part["type"] == "image" else part for part in message["content"]]
    return reference(text=[{**message, "content": parts}], **parameters)


def _seeded(reference: Any, values: Values, parameters: Mapping[str, Any]) -> Any:
    torch.manual_seed(0)
    return _first(reference, values, parameters)


def _chooser(folder: Path) -> Path:
    return tiny_causal_lm(folder, max_tokens=1024, chat_template=CHAT_TEMPLATE)


@dataclass(frozen=True)
class Case:
    task: str
    build: Callable[[Path], Path]
    rows: Sequence[Values]
    parameters: Mapping[str, Any]
    call: Callable[[Any, Values, Mapping[str, Any]], Any] = _first
    is_joined: bool = True
    tolerance: float = 1e-5

    def __str__(self) -> str:
        return "-".join([self.task, self.build.__name__, *self.parameters])


def _of(name: str, values: Sequence[Any]) -> list[Values]:
    return [{name: value} for value in values]


_IMAGE_ROWS = _of("image", IMAGES)
_SOUND_ROWS = _of("audio", SOUNDS)
_SPOKEN_ROWS = _of("audio", [_sound(size) for size in (16_000, 30_000, 16_000)])
_LONG_ROWS = [*_SPOKEN_ROWS, *_of("audio", [_sound(60_000), _sound(70_000)])]
_LABELLED_IMAGES = [*_IMAGE_ROWS, {"image": IMAGES[0], "candidate_labels": ["one", "two", "three"]}]
_DOCUMENTS = [
    {
        "image": IMAGES[0],
        "question": question,
        "word_boxes": [[word, [i, i, i + 9, i + 9]] for i, word in enumerate(words)],
    }
    for question, words in zip(("who?", "what is it", "who?", "where"), WORDS, strict=True)
]
_TABLES = [
    {"table": {"name": ["ada", "bob"], "age": ["1", "2"]}, "query": "how old"},
    {"table": {"name": ["ada", "bob"], "age": ["1", "2"]}, "query": "name it"},
    {"table": {"name": ["bob", "ada"], "age": ["3", "4"]}, "query": "how old"},
    {"table": {"a": ["x", "y", "z"]}, "query": "the sum"},
]
_PAIRS = [{"image": IMAGES[one], "image_pair": IMAGES[other]} for one, other in ((0, 1), (2, 3), (1, 4), (3, 0))]
_CAPTIONS = [
    {"image": image, "text": text}
    for image, text in zip(
        IMAGES, ("<image> a fox", "<image> a dog", "<image> the lazy dog", "<image> a fox", "x <image>"), strict=True
    )
]
_CHATS = [
    {"image": image, "text": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]}
    for image, text in zip(IMAGES, ("what?", "what?", "a longer question", "who?", "what?"), strict=True)
]
_CHOICE = {"type": "choice", "instructions": "How is it?", "criteria": {"good": "happy", "bad": "angry"}}
_DECISIONS = [{"state": text, "questions": {"mood": _CHOICE}} for text in ("charged twice", "all is well")]

CASES = [
    Case("image-classification", tiny_image_classifier, _IMAGE_ROWS, {}),
    Case("image-classification", tiny_image_classifier, _IMAGE_ROWS, {"top_k": 2, "function_to_apply": "sigmoid"}),
    Case("image-feature-extraction", tiny_image_classifier, _IMAGE_ROWS, {}),
    Case("object-detection", tiny_media.tiny_detector, _IMAGE_ROWS, {"threshold": 0.0}),
    Case("image-segmentation", tiny_media.tiny_segmenter, _IMAGE_ROWS, {}),
    Case("image-segmentation", tiny_media.tiny_mask_former, _IMAGE_ROWS, {"threshold": 0.0}),
    Case("image-segmentation", tiny_media.tiny_mask_former, _IMAGE_ROWS, {"subtask": "semantic"}),
    Case("depth-estimation", tiny_media.tiny_depth, _IMAGE_ROWS, {}, tolerance=1e-2),
    Case("zero-shot-image-classification", tiny_media.tiny_clip, _LABELLED_IMAGES, LABELS, _with_labels),
    Case(
        "zero-shot-object-detection", tiny_media.tiny_owl, _LABELLED_IMAGES, {**LABELS, "threshold": 0.0}, _with_labels
    ),
    Case("keypoint-matching", tiny_media.tiny_matcher, _PAIRS, {}, _pair),
    Case("image-text-to-text", tiny_media.tiny_llava, _CAPTIONS, {"max_new_tokens": 6}, _image_and_text),
    Case(
        "image-text-to-text",
        tiny_media.tiny_llava,
        _CAPTIONS,
        {"generate_kwargs": {"num_beams": 2}, "return_full_text": False},
        _image_and_text,
    ),
    Case("image-text-to-text", tiny_media.tiny_llava, _CHATS, {"max_new_tokens": 4}, _chat),
    Case("document-question-answering", tiny_media.tiny_reader_of_documents, _DOCUMENTS, {"top_k": 2}, _as_mapping),
    Case("table-question-answering", tiny_media.tiny_reader_of_tables, _TABLES, {}, _as_mapping),
    Case(
        "table-question-answering",
        tiny_media.tiny_reader_of_tables,
        _TABLES,
        {"sequential": True},
        _as_mapping,
        is_joined=False,
    ),
    Case("audio-classification", tiny_media.tiny_sound_classifier, _SOUND_ROWS, {"top_k": 2}),
    Case("zero-shot-audio-classification", tiny_media.tiny_clap, _SOUND_ROWS, LABELS, _with_labels),
    Case("automatic-speech-recognition", tiny_ctc, _SOUND_ROWS, {}),
    Case("automatic-speech-recognition", tiny_ctc, _SOUND_ROWS, {"chunk_length_s": 0.2, "return_timestamps": "word"}),
    Case("automatic-speech-recognition", tiny_media.tiny_whisper, _SPOKEN_ROWS, {}),
    Case(
        "automatic-speech-recognition", tiny_media.tiny_whisper, _LONG_ROWS, {"num_beams": 1, "return_timestamps": True}
    ),
    Case(
        "automatic-speech-recognition",
        tiny_media.tiny_whisper,
        _LONG_ROWS,
        {"generate_kwargs": {"num_beams": 1}, "chunk_length_s": 3},
    ),
    Case(
        "automatic-speech-recognition",
        tiny_media.tiny_whisper,
        _SPOKEN_ROWS,
        {"num_beams": 1, "return_timestamps": "word"},
        is_joined=False,
    ),
    Case("feature-extraction", tiny_encoder, _of("text", TEXTS), {}),
    Case("feature-extraction", tiny_encoder, _of("text", TEXTS), {"tokenize_kwargs": {"add_special_tokens": False}}),
    Case(
        "feature-extraction",
        tiny_encoder,
        _of("text", TEXTS),
        {"tokenize_kwargs": {"padding": "max_length", "max_length": 40}},
    ),
    Case(
        "zero-shot-classification",
        tiny_media.tiny_entailer,
        [*_of("text", TEXTS), {"text": "x", "candidate_labels": "p, q"}],
        LABELS,
        _with_labels,
    ),
    Case(
        "zero-shot-classification",
        tiny_media.tiny_entailer,
        _of("text", TEXTS),
        {**LABELS, "multi_label": True, "hypothesis_template": "It is {}."},
        _with_labels,
    ),
    Case(
        "text-to-audio",
        tiny_media.tiny_voice,
        _of("text", ["hello there", "hi", "hallo there"]),
        {},
        _seeded,
        is_joined=False,
    ),
    Case("decision", _chooser, _DECISIONS, {}, _as_mapping, is_joined=False),
]
NOT_HERE = {
    "mask-generation": "needs torchvision, which is not in the tested set; test_task_parameters has its parameters",
    "video-classification": "reads films from files: see test_task_media",
    "any-to-any": "its models with images need torchvision, and those without are of gigabytes",
}
"""Tasks that no case runs, and why."""


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], Path]], Path]:
    """Makes each tiny model once."""
    folder = tmp_path_factory.mktemp("models")

    def made(build: Callable[[Path], Path]) -> Path:
        target = folder / build.__name__
        return target if target.exists() else build(target)

    return made


def through_engine(task_model: TaskModel, rows: Sequence[Row]) -> list[Any]:
    """Outputs or row errors, packed into batches as a lease packs them."""
    engine = InferenceEngine(task_model, CPU, Budget(4096, 64, 64))
    encoded = engine.encode(rows)
    found = {one.row.row_index: one.error for one in encoded if one.error is not None}
    for members in engine.batches([one for one in encoded if one.error is None]):
        for piece in engine.compute(members, engine.collate(members), lambda: None):
            found.update(zip((one.row.row_index for one in piece.members), engine.decode(piece), strict=True))
    return [found[index] for index in sorted(found)]


@pytest.mark.filterwarnings("ignore")  # the libraries' own, of models with random weights
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_row_gets_what_its_pipeline_gives_alone(
    case: Case, model_of: Callable[[Callable[[Path], Path]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_of(case.build)
    reference = pipeline(case.task, model=str(folder), device="cpu", dtype=torch.float32)
    expected = [json_value(case.call(reference, values, case.parameters)) for values in case.rows]
    task_model = load(case.task, folder, case.parameters)
    passes = []
    compute = transformers_internals.compute
    monkeypatch.setattr(transformers_internals, "compute", lambda *given: passes.append(1) or compute(*given))
    order = list(range(len(case.rows)))
    random.Random(0).shuffle(order)
    rows = [Row(place, None, case.rows[index]) for place, index in enumerate(order)]
    broken = Row(len(rows), None, dict.fromkeys(case.rows[0], 0.5))
    found = through_engine(task_model, [*rows[:2], broken, *rows[2:]])
    assert isinstance(found.pop(), RowError)
    for place, index in enumerate(order):
        assert same(found[place], expected[index], tolerance=case.tolerance), (found[place], expected[index])
    num_items = sum(len(one.features.items) for one in task_model.encode(rows))
    assert (len(passes) < num_items) is case.is_joined


@pytest.mark.filterwarnings("ignore")
def test_rows_that_are_prepared_by_the_forward_thread_get_the_same(
    model_of: Callable[[Callable[[Path], Path]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mask generation prepares its rows so, and does not run here."""
    task, folder = "zero-shot-object-detection", model_of(tiny_media.tiny_owl)
    rows = [Row(index, None, values) for index, values in enumerate(_IMAGE_ROWS[:3])]
    expected = through_engine(load(task, folder, LABELS), rows)
    monkeypatch.setattr(staged, "TASKS_WHOLE", {task: "to try it"})
    assert same(through_engine(load(task, folder, LABELS), rows), expected)


@pytest.mark.filterwarnings("ignore")
def test_labels_of_a_row_are_texts(model_of: Callable[[Callable[[Path], Path]], Path]) -> None:
    """A pipeline makes labels of numbers, nulls and lists, and of the parts of a list that was written as text."""
    task, folder = "zero-shot-classification", model_of(tiny_media.tiny_entailer)
    good = [["p", "q"], "p, q", '["p", "q"]']
    bad = [[1], ["p", None], [["p"]], {"p": 1}, "['p', 'q']", [], "[]"]
    rows = [Row(index, None, {"text": "x", "candidate_labels": value}) for index, value in enumerate(good + bad)]
    found = through_engine(load(task, folder, {}), rows)
    assert same(found[1], found[0])
    assert same(found[2], found[0])
    assert [one.code for one in found[3:]] == ["wrong_type"] * 5 + ["null_value"] * 2
    own = through_engine(load(task, folder, {"candidate_labels": ["p", "q"]}), rows[-2:])
    assert same(own[0], found[0])


@pytest.mark.filterwarnings("ignore")
def test_a_second_try_at_a_batch_gives_the_same(model_of: Callable[[Callable[[Path], Path]], Path]) -> None:
    """Pipelines take their inputs apart, and a batch that did not fit is computed again."""
    chunks = {"chunk_length_s": 0.2}
    for task, build, rows, parameters in (
        ("automatic-speech-recognition", tiny_ctc, _SOUND_ROWS, chunks),
        ("table-question-answering", tiny_media.tiny_reader_of_tables, _TABLES, {}),
        ("image-segmentation", tiny_media.tiny_segmenter, _IMAGE_ROWS, {}),
    ):
        task_model = load(task, model_of(build), parameters)
        batch = task_model.encode([Row(index, None, values) for index, values in enumerate(rows)])
        collated = task_model.collate(batch)
        first = task_model.decode(batch, task_model.forward(collated))
        assert task_model.decode(batch, task_model.forward(collated)) == first
        assert task_model.decode(batch, task_model.forward(task_model.collate(batch))) == first


def test_every_pipeline_of_transformers_is_a_task_of_ours() -> None:
    assert set(transformers_internals.SUPPORTED_TASKS) == (set(OWN_TASKS) - {"embeddings"}) | set(CALLS)
    assert set(TASKS) == set(OWN_TASKS) | set(CALLS)
    assert dict(transformers_internals.REMOVED_TASKS).items() <= REMOVED_TASKS.items()
    assert dict(transformers_internals.TASK_ALIASES).items() <= ALIASES.items()
    assert set(CALLS) == {case.task for case in CASES} | set(NOT_HERE)
    assert set(TASKS_ALONE) <= set(CALLS)


def test_the_installed_transformers_has_what_we_reach_into() -> None:
    transformers_internals.check_internals()
    for task in CALLS:
        transformers_internals.pipeline_class(task)
