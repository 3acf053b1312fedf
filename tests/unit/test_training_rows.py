"""What a row of a training teaches, and the one sentence on each that teaches nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.data.sources import open_source
from jobs.data.sources.training_rows import RowCheck, RowFlaw
from jobs.data.store import Store
from jobs.specs.fields import InputSpec
from jobs.specs.training_options.training_tasks import TRAINING_TASKS
from worker.training.tasks.classes import Classes

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def check(task: str, names: list[str] | None = None) -> RowCheck:
    info = TRAINING_TASKS[task]
    return RowCheck(info, {name: name for name in (*info.inputs, *info.optional)}, names)


def flaw_of(task: str, **values: Any) -> str:
    with pytest.raises(RowFlaw) as caught:
        check(task).classes(values)
    return str(caught.value)


@pytest.mark.parametrize("task", ["text-classification", "image-classification"])
@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("pos", "pos"),
        (3, "3"),
        ("3", "3"),
        (True, "True"),
        (-100, None),
        ("-100", None),
        (-2, "-2"),
        ("NaN", "NaN"),
        ("None", "None"),
    ],
)
def test_a_row_has_one_class_or_none(task: str, label: Any, found: str | None) -> None:
    assert check(task).classes({"label": label}) == [found]


@pytest.mark.parametrize("task", ["text-classification", "image-classification"])
@pytest.mark.parametrize(
    ("label", "words"),
    [
        (0.0, "contains 0.0, a number with a decimal point"),
        (0.17, "predicts classes, not numbers (regression)"),
        ("0.0", "contains '0.0', a number with a decimal point"),
        ("-1.5e3", "a number with a decimal point"),
        (["pos"], "contains a list of labels, but task"),
        ([], "contains a list of labels, but task"),
        ([1, 0, 1], "needs one class for each row"),
        ({"a": 1}, "contains an object"),
        (-1, "contains -1, which means no label in some data sets"),
        ("-1", "write -100 or leave the row out"),
        ("", "has no label"),
        (" ", "has no label"),
        (None, "has no label"),
        (math.nan, "has no label"),
    ],
)
def test_a_label_that_is_no_class_is_one_sentence(task: str, label: Any, words: str) -> None:
    found = flaw_of(task, label=label)
    assert found.startswith("column 'label' ")
    assert words in found


def test_each_word_has_a_class_or_none() -> None:
    row = {"tokens": ["Ada", "sang", "here"], "labels": ["B-PER", -100, 0]}
    assert check("token-classification").classes(row) == ["B-PER", None, "0"]


@pytest.mark.parametrize(
    ("tokens", "labels", "words"),
    [
        ("Ada sang", ["O", "O"], "column 'tokens' must be a list of words, not a text"),
        ([], [], "must be a list of words, not an empty list"),
        (["Ada", 1], ["O", "O"], "word 2 is a number"),
        (["Ada", "sang"], ["O"], "the row has 2 tokens but 1 label"),
        (["Ada", "sang"], "O O", "column 'labels' must be a list with a label for each word"),
        (["Ada", "sang"], ["O", None], "column 'labels', word 2, has no label"),
        (
            ["Ada", "sang"],
            ["O", ["O", "B"]],
            "word 2, contains a list of labels, but task token-classification needs one",
        ),
        (["Ada", "sang"], ["O", 0.5], "word 2, contains 0.5, a number with a decimal point"),
        (["Ada", "sang"], ["O", -1], "word 2, contains -1"),
    ],
)
def test_words_that_teach_nothing_are_one_sentence(tokens: Any, labels: Any, words: str) -> None:
    assert words in flaw_of("token-classification", tokens=tokens, labels=labels)


@pytest.mark.parametrize("task", ["text-classification", "text-generation", "automatic-speech-recognition"])
def test_texts_are_texts_and_nothing_else(task: str) -> None:
    assert flaw_of(task, text=["a", "b"]) == "column 'text' must be text for input 'text', not a list"
    assert "a chat, but a training needs texts; apply the model's chat template" in flaw_of(task, text=CHAT)


def test_a_sound_needs_a_text_and_a_text_to_go_on_with_may_be_empty() -> None:
    assert "column 'text' is empty" in flaw_of("automatic-speech-recognition", text=" ")
    assert check("text-generation").classes({"text": ""}) == []


def test_ids_of_a_data_set_are_its_names() -> None:
    named = check("text-classification", ["neg", "pos"])
    assert [named.classes({"label": label}) for label in (1, "0", "pos")] == [["pos"], ["neg"], ["pos"]]
    assert named.classes({"label": -1}) == named.classes({"label": -100}) == [None], "as the library writes none"
    with pytest.raises(RowFlaw, match="contains 2, which is not one of the data set's 2 classes"):
        named.classes({"label": 2})


NAMED = {"negative": 0, "neutral": 1, "positive": 2}
UNNAMED = {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


@pytest.mark.parametrize(
    ("found", "known", "has_head", "names"),
    [
        ("012", NAMED, True, ["negative", "neutral", "positive"]),  # ids of the model's own classes
        ("012", NAMED, False, ["0", "1", "2"]),  # its names are of another task
        ("01", NAMED, True, ["0", "1"]),  # other classes than the model's: not all of its ids are there
        ("0123", NAMED, True, ["0", "1", "2", "3"]),
        ("012", UNNAMED, True, ["0", "1", "2"]),  # they have no names
        ("ab", UNNAMED, True, ["a", "b"]),
    ],
)
def test_given_ids_keep_the_names_of_the_model(
    found: str, known: dict[str, int], has_head: bool, names: list[str]
) -> None:
    classes = Classes.of(frozenset(found), known, has_head=has_head)
    assert classes.names == names
    assert [classes.ids[name] for name in sorted(found)] == list(range(len(found)))


def test_a_model_keeps_its_head_where_rows_lack_some_of_its_classes() -> None:
    classes = Classes.of(frozenset({"positive", "negative"}), NAMED)
    assert classes.names == ["negative", "neutral", "positive"]
    assert classes.ids == NAMED


def test_label_names_of_a_data_set_are_all_kept() -> None:
    classes = Classes.of(frozenset({"pos", "neg"}), UNNAMED, data_names=["pos", "neg", "neutral"], has_head=True)
    assert classes.names == ["pos", "neg", "neutral"], "its ids, also of a class that no row has"
    kept = Classes.of(frozenset({"positive"}), NAMED, data_names=["positive", "neutral", "negative"])
    assert kept.names == ["negative", "neutral", "positive"], "the ids of the head that knows them already"


@pytest.mark.parametrize("form", ["saved", "parquet", "jsonl"])
def test_names_of_classes_are_found_beside_the_rows(tmp_path: Path, form: str) -> None:
    import datasets

    features = datasets.Features(
        label=datasets.ClassLabel(names=["neg", "pos"]), labels=datasets.List(datasets.ClassLabel(names=["O", "B"])),
        text=datasets.Value("string"),
    )  # fmt: skip
    rows = datasets.Dataset.from_list([{"label": 1, "labels": [0, 1], "text": "a b"}] * 3, features=features)
    path = tmp_path / {"saved": "set", "parquet": "rows.parquet", "jsonl": "rows.jsonl"}[form]
    {"saved": rows.save_to_disk, "parquet": rows.to_parquet, "jsonl": rows.to_json}[form](str(path))
    source = open_source(
        InputSpec(path=str(path)), {"label": "label"}, rules=Settings(input_roots=[tmp_path]),
        store=Store(f"file://{tmp_path}"), find_upload=lambda _: pytest.fail("no upload is named"),
    )  # fmt: skip
    found = [source.class_names(column) for column in ("label", "labels", "text", "nothing")]
    assert found == ([None] * 4 if form == "jsonl" else [["neg", "pos"], ["O", "B"], None, None])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", 'label\nNaN\nnull\n"None"\n'),
        ("rows.jsonl", '{"label": "NaN"}\n{"label": "null"}\n{"label": "None"}\n'),
    ],
)
def test_words_for_missing_values_are_classes_of_their_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    source = open_source(
        InputSpec(path=str(tmp_path / name)), {"label": "label"}, rules=Settings(input_roots=[tmp_path]),
        store=Store(f"file://{tmp_path}"), find_upload=lambda _: pytest.fail("no upload is named"),
    )  # fmt: skip
    (part,) = source.index(10)
    rows = source.read(part.start_row, part.stop_row, part.locator)
    assert [check("image-classification").classes(row.values) for row in rows] == [["NaN"], ["null"], ["None"]]
