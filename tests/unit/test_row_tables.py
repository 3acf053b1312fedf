"""Tables and words with boxes are taken in every form that a source gives, and anything else is a clear row error."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.data.rows import RowError
from worker.inference.pipelines.row_tables import row_table, row_word_boxes

TABLE = {"name": ["ada", "bob"], "age": ["36", "7.5"]}
BOXES = [("the", [0, 0, 9, 9]), ("fox", [10, 0, 1000, 9])]


@pytest.mark.parametrize(
    "value",
    [
        TABLE,
        {"name": ["ada", "bob"], "age": [36, 7.5]},
        [{"name": "ada", "age": 36}, {"name": "bob", "age": 7.5}],
        [{"name": "ada", "age": 36}, {"age": "7.5", "name": "bob"}],
        '{"name": ["ada", "bob"], "age": [36, 7.5]}',
        '[{"name": "ada", "age": 36}, {"name": "bob", "age": 7.5}]',
    ],
    ids=str,
)
def test_a_table_becomes_texts_by_column(value: Any) -> None:
    assert row_table(value) == TABLE


def test_a_null_cell_is_empty() -> None:
    assert row_table({"name": ["ada", None]}) == {"name": ["ada", ""]}


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ({}, "empty_row", "the table is empty"),
        ({"name": []}, "empty_row", "the table is empty"),
        ({"name": ["ada"], "age": [1, 2]}, "wrong_type", "same number of cells"),
        ([{"name": "ada"}, {"age": 1}], "wrong_type", "same columns"),
        ({"name": "ada"}, "wrong_type", "must be a mapping of columns"),
        (["ada"], "wrong_type", "must be a mapping of columns"),
        ([], "wrong_type", "must be a mapping of columns"),
        ("name,age", "wrong_type", "must be a mapping of columns"),
        (7, "wrong_type", "must be a mapping of columns"),
        (None, "wrong_type", "must be a mapping of columns"),
    ],
    ids=str,
)
def test_what_is_no_table_is_a_row_error(value: Any, code: str, words: str) -> None:
    found = row_table(value)
    assert isinstance(found, RowError)
    assert found.code == code
    assert words in found.message


@pytest.mark.parametrize(
    "value",
    [
        BOXES,
        [["the", (0, 0, 9, 9)], ["fox", [10.0, 0, 1000, 9]]],
        '[["the", [0, 0, 9, 9]], ["fox", [10, 0, 1000, 9]]]',
    ],
    ids=str,
)
def test_words_have_boxes_of_whole_numbers(value: Any) -> None:
    assert row_word_boxes(value) == BOXES


@pytest.mark.parametrize("value", [None, [], ""])
def test_no_words_stay_none(value: Any) -> None:
    """The pipeline then reads the image itself, or reports what it lacks."""
    assert row_word_boxes(value) == value


@pytest.mark.parametrize(
    "value",
    [
        [["the", [0, 0, 9]]],
        [["the", [0, 0, 9, 1001]]],
        [["the", [-1, 0, 9, 9]]],
        [["the", [0.5, 0, 9, 9]]],
        [["the", [True, 0, 9, 9]]],
        [["the", ["0", 0, 9, 9]]],
        [[7, [0, 0, 9, 9]]],
        [["the"]],
        [{"word": "the", "box": [0, 0, 9, 9]}],
        "the fox",
        '{"the": [0, 0, 9, 9]}',
        7,
    ],
    ids=str,
)
def test_words_without_proper_boxes_are_a_row_error(value: Any) -> None:
    found = row_word_boxes(value)
    assert isinstance(found, RowError)
    assert found.code == "wrong_type"
    assert "four whole numbers from 0 to 1000" in found.message
