"""Each task that runs through its pipeline gives the pipeline's own output for each row alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from jobs.data.rows import Row, RowError
from jobs.specs.parameters import PARAMETERS
from jobs.specs.tasks import ALIASES, REMOVED_TASKS, TASKS
from tests.support import tiny_media
from tests.support.pipeline_cases import CASES, NOT_COMPARED, NOT_HERE, Case
from tests.support.pipeline_rows import DOCUMENTS, IMAGE_ROWS, LABELS, LONG_ROWS, SOUND_ROWS, TABLES, TEXT_ROWS
from tests.support.task_kit import CPU, load, same
from tests.support.through_engine import compute
from tests.support.tiny import tiny_ctc, tiny_image_classifier
from worker.inference.budget import Budget
from worker.inference.encoding import RowEncoder
from worker.inference.engine import InferenceEngine
from worker.inference.pipelines import staged
from worker.inference.pipelines.alone import TASKS_ALONE
from worker.inference.pipelines.calls import CALLS
from worker.inference.tasks import OWN_TASKS
from worker.models import transformers_internals
from worker.models.json_values import json_value

ModelOf = Callable[[Callable[[Path], Path]], Path]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> ModelOf:
    """Makes each tiny model once."""
    folder = tmp_path_factory.mktemp("models")

    def made(build: Callable[[Path], Path]) -> Path:
        target = folder / build.__name__
        return target if target.exists() else build(target)

    return made


@pytest.mark.filterwarnings("ignore")  # the libraries' own, of models with random weights
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_row_equals_its_pipeline_called_alone(
    case: Case, model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_of(case.build)
    reference = pipeline(case.task, model=str(folder), device="cpu", dtype=torch.float32)
    expected = [json_value(case.call(reference, values, case.parameters)) for values in case.rows]
    task_model = load(case.task, folder, case.parameters)
    passes = []
    forward = transformers_internals.compute
    monkeypatch.setattr(transformers_internals, "compute", lambda *given: passes.append(1) or forward(*given))
    order = list(range(len(case.rows)))
    random.Random(0).shuffle(order)
    rows = [Row(place, None, case.rows[index]) for place, index in enumerate(order)]
    broken = Row(len(rows), None, dict.fromkeys(case.rows[0], 0.5))
    found = compute(task_model, [*rows[:2], broken, *rows[2:]]).outputs
    assert isinstance(found.pop(2), RowError)
    for output, index in zip(found, order, strict=True):
        assert same(output, expected[index], tolerance=case.tolerance), (output, expected[index])
    num_items = sum(len(one.features.items) for one in task_model.encode(rows))
    assert (len(passes) < num_items) is case.is_joined
    for row, index in zip(rows, order, strict=True):
        [alone] = compute(task_model, [row]).outputs
        assert same(alone, expected[index], tolerance=case.tolerance), (alone, expected[index])


def test_every_parameter_of_every_task_is_compared_with_the_pipeline() -> None:
    """The other tasks have a file of their own with such comparisons."""
    compared = {(case.task, name) for case in CASES for name in case.parameters}
    named = {(task, name) for task in CALLS if task not in NOT_HERE for name in PARAMETERS[task].names()}
    assert named - compared == set(NOT_COMPARED)


@pytest.mark.filterwarnings("ignore")
def test_a_long_sound_needs_no_parameter(model_of: ModelOf) -> None:
    """Whisper hears it part by part, for which it needs timestamps; the pipeline alone would refuse it."""
    folder = model_of(tiny_media.tiny_whisper)
    reference = pipeline("automatic-speech-recognition", model=str(folder), device="cpu", dtype=torch.float32)
    rows = [Row(index, None, values) for index, values in enumerate(LONG_ROWS)]
    found = compute(load("automatic-speech-recognition", folder, {"num_beams": 1}), rows).outputs
    for output, values in zip(found, LONG_ROWS, strict=True):
        is_long = len(values["audio"]) > 48_000
        options = {"return_timestamps": True} if is_long else {}
        expected = reference(values["audio"].copy(), generate_kwargs={"num_beams": 1}, **options)
        assert output == {"text": expected["text"]}


@pytest.mark.filterwarnings("ignore")
def test_rows_that_are_prepared_by_the_forward_thread_get_the_same(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mask generation prepares its rows so, and does not run here."""
    task, folder = "zero-shot-object-detection", model_of(tiny_media.tiny_owl)
    rows = [Row(index, None, values) for index, values in enumerate(IMAGE_ROWS[:3])]
    expected = compute(load(task, folder, LABELS), rows).outputs
    monkeypatch.setattr(staged, "TASKS_WHOLE", {task: "to try it"})
    assert same(compute(load(task, folder, LABELS), rows).outputs, expected)


@pytest.mark.filterwarnings("ignore")
def test_labels_of_a_row_are_texts(model_of: ModelOf) -> None:
    """A pipeline makes labels of numbers, nulls and lists, and of the parts of a list that was written as text."""
    task, folder = "zero-shot-classification", model_of(tiny_media.tiny_entailer)
    good = [["p", "q"], "p, q", '["p", "q"]']
    bad = [[1], ["p", None], [["p"]], {"p": 1}, "['p', 'q']", ["p", ""], [], "[]", ","]
    rows = [Row(index, None, {"text": "x", "candidate_labels": value}) for index, value in enumerate(good + bad)]
    found = compute(load(task, folder, {}), rows).outputs
    assert same(found[1], found[0])
    assert same(found[2], found[0])
    assert [one.code for one in found[3:]] == ["wrong_type"] * 5 + ["invalid_value"] + ["null_value"] * 3
    own = compute(load(task, folder, {"candidate_labels": ["p", "q"]}), rows[-2:]).outputs
    assert same(own[0], found[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "build", "name", "rows"),
    [
        ("table-question-answering", tiny_media.tiny_reader_of_tables, "table", TABLES),
        ("document-question-answering", tiny_media.tiny_reader_of_documents, "word_boxes", DOCUMENTS),
    ],
)
def test_tables_and_words_may_be_json_text(
    task: str, build: Callable[[Path], Path], name: str, rows: list[Any], model_of: ModelOf
) -> None:
    """A CSV file has no other form for them."""
    task_model = load(task, model_of(build))
    texts = [{**values, name: json.dumps(values[name])} for values in rows]
    found, expected = (
        compute(task_model, [Row(index, None, values) for index, values in enumerate(of_form)]).outputs
        for of_form in (texts, rows)
    )
    assert same(found, expected)


@pytest.mark.filterwarnings("ignore")
def test_a_second_try_at_a_batch_gives_the_same(model_of: ModelOf) -> None:
    """Pipelines take their inputs apart, and a batch that did not fit is computed again."""
    chunks = {"chunk_length_s": 0.2}
    for task, build, rows, parameters in (
        ("automatic-speech-recognition", tiny_ctc, SOUND_ROWS, chunks),
        ("table-question-answering", tiny_media.tiny_reader_of_tables, TABLES, {}),
        ("image-segmentation", tiny_media.tiny_segmenter, IMAGE_ROWS, {}),
    ):
        task_model = load(task, model_of(build), parameters)
        batch = task_model.encode([Row(index, None, values) for index, values in enumerate(rows)])
        collated = task_model.collate(batch)
        first = task_model.decode(batch, task_model.forward(collated))
        assert task_model.decode(batch, task_model.forward(collated)) == first
        assert task_model.decode(batch, task_model.forward(task_model.collate(batch))) == first


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "build", "rows"),
    [
        ("image-classification", tiny_image_classifier, IMAGE_ROWS),
        ("automatic-speech-recognition", tiny_ctc, SOUND_ROWS),
    ],
)
def test_rows_that_do_not_fit_together_are_computed_in_smaller_batches(
    task: str, build: Callable[[Path], Path], rows: list[Any], model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for more memory than a process can address fails as a full device does, before it takes any."""
    task_model = load(task, model_of(build))
    twins = [Row(index, None, values) for index, values in enumerate(rows * 3)]
    expected = compute(task_model, twins).outputs
    forward, sizes = transformers_internals.compute, []

    def tight(pipeline: Any, inputs: Any, parameters: Any) -> Any:
        num_rows = len(next(value for value in inputs.values() if isinstance(value, torch.Tensor)))
        if num_rows > 2:
            sizes.append(num_rows)
            torch.empty(1 << 48, dtype=torch.uint8)
        return forward(pipeline, inputs, parameters)

    monkeypatch.setattr(transformers_internals, "compute", tight)
    assert same(compute(task_model, twins).outputs, expected)
    assert sizes, "all batches fitted, so nothing was shown"


@pytest.mark.filterwarnings("ignore")
def test_rows_of_several_parts_share_a_batch_without_padding(model_of: ModelOf) -> None:
    """A text with each of its labels is one part; parts of equal length are joined, whatever the texts' lengths."""
    task_model = load("zero-shot-classification", model_of(tiny_media.tiny_entailer), LABELS)
    engine = InferenceEngine(task_model, CPU, Budget(3072, 256, 64))
    texts = [*TEXT_ROWS, *({"text": "x " * length} for length in range(1, 40, 3))]
    encoded = list(engine.encode([Row(index, None, values) for index, values in enumerate(texts)]))
    [batch] = engine.batches(encoded)
    for piece in engine.compute([batch], [engine.collate(batch)], lambda: None):
        engine.decode(piece)
    assert engine.usage.num_tokens == engine.usage.num_padded_tokens == sum(one.num_tokens for one in encoded)


@pytest.mark.filterwarnings("ignore")
def test_each_thread_that_encodes_has_a_tokenizer_of_its_own(model_of: ModelOf) -> None:
    """Windows of documents are cut by settings that a tokenizer keeps; threads that share one silently get others."""
    parameters = {"max_seq_len": 16, "doc_stride": 4}
    task_model = load("document-question-answering", model_of(tiny_media.tiny_reader_of_documents), parameters)
    assert isinstance(task_model, staged.Staged)
    threads = [task_model.for_thread(number) for number in range(3)]
    assert len({id(one._encoder.tokenizer) for one in threads}) == 3
    assert task_model.for_thread(2)._encoder is threads[2]._encoder, "copying a tokenizer takes long"
    rows = [Row(index, None, values) for index, values in enumerate(DOCUMENTS * 10)]
    expected = [one.features.items for one in task_model.encode(rows)]
    encoder = RowEncoder(task_model, num_threads=3, row_error=lambda error: RowError("row_failed", str(error)))
    try:
        found = [one.features.items for one in encoder.encode(rows)]
    finally:
        encoder.close()
    for windows, others in zip(found, expected, strict=True):
        assert [window["input_ids"].tolist() for window in windows] == [other["input_ids"].tolist() for other in others]


def test_every_pipeline_of_transformers_is_a_task_of_ours() -> None:
    assert set(transformers_internals.SUPPORTED_TASKS) == (set(OWN_TASKS) - {"embeddings"}) | set(CALLS)
    assert set(TASKS) == set(OWN_TASKS) | set(CALLS)
    assert dict(transformers_internals.REMOVED_TASKS).items() <= REMOVED_TASKS.items()
    assert dict(transformers_internals.TASK_ALIASES).items() <= ALIASES.items()
    assert set(CALLS) == {case.task for case in CASES} | set(NOT_HERE)
    assert set(TASKS_ALONE) <= set(CALLS)
