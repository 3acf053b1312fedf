"""The spec of an array: its values in three forms, and how they are put into the template."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from jobs.errors import InvalidSpec
from jobs.specs.array_spec import ArraySpec, parse_submission
from jobs.specs.inference import InferenceSpec

TEMPLATE = {"task": "text-classification", "model": "org/model", "input": {"path": "x.jsonl"}}


def array(field: Any, **fields: Any) -> ArraySpec:
    spec = parse_submission({**TEMPLATE, **fields, "array": field})
    assert isinstance(spec, ArraySpec)
    return spec


def documents(spec: ArraySpec) -> list[dict[str, Any]]:
    return [spec.document_of(index, values) for index, values in enumerate(spec.array.listed())]


def test_values_are_put_into_all_texts_of_the_template() -> None:
    spec = array(
        {"values": [{"lang": "de", "k": 3}, {"lang": "fr", "k": 5}]},
        name="${lang} ${index}",
        input={"path": ["data/${lang}.jsonl", "plain.jsonl"], "key": "${lang}"},
        parameters={"top_k": "${k}"},
    )
    first, second = documents(spec)
    assert first["name"] == "de 0"
    assert first["input"] == {"path": ["data/de.jsonl", "plain.jsonl"], "key": "de"}
    assert second["parameters"] == {"top_k": 5}, "a text that is only a place becomes the value, with its type"
    child = spec.child(1, {"lang": "fr", "k": 5})
    assert isinstance(child, InferenceSpec)
    assert child.parameters == {"top_k": 5}
    assert spec.names == {"lang", "k"}


def test_an_index_among_the_values_is_not_the_childs_number() -> None:
    assert [one["name"] for one in documents(array({"values": [{"index": 7}, {"index": 9}]}, name="p${index}"))] == [
        "p7",
        "p9",
    ]


def test_single_values_have_the_name_value() -> None:
    assert [one["model"] for one in documents(array({"values": ["a", "b"]}, model="org/${value}"))] == [
        "org/a",
        "org/b",
    ]
    (only,) = documents(array({"values": [True]}, parameters={"top_k": "${value}"}))
    assert only["parameters"] == {"top_k": True}


def test_a_place_after_two_dollars_stays_as_it_is() -> None:
    (only,) = documents(array({"values": [1]}, name="$${value} ${value} $x {value}"))
    assert only["name"] == "${value} 1 $x {value}"


def test_a_grid_has_all_combinations_in_order_and_any_of_them_at_once() -> None:
    spec = array({"grid": {"a": [1, 2, 3], "b": ["x", "y"]}})
    combinations = list(spec.array.listed())
    assert combinations[:3] == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}]
    assert len(combinations) == spec.array.num_listed == 6
    assert list(spec.array.listed(4)) == combinations[4:]
    large = array({"grid": {name: list(range(10)) for name in "abcdef"}})
    assert list(islice(large.array.listed(999_999), 1)) == [dict.fromkeys("abcdef", 9)]


def test_what_belongs_to_the_array_is_not_in_its_children() -> None:
    spec = array({"values": [1]}, after=["job:job_1"], start_at="2090-01-01T00:00:00Z", priority="high")
    (only,) = documents(spec)
    assert {"array", "after", "start_at"}.isdisjoint(only)
    assert only["priority"] == "high"
    assert parse_submission(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("field", "fields", "message"),
    [
        ({}, {}, "array: needs exactly one of values, grid and file"),
        ({"values": [1], "file": "x.jsonl"}, {}, "array: needs exactly one of values, grid and file"),
        ({"values": []}, {}, "array.values: "),
        ({"values": [[1]]}, {}, "array.values.0"),
        ({"values": [None]}, {}, "array.values.0"),
        ({"grid": {"a": []}}, {}, "array.grid.a: "),
        ({"grid": {name: list(range(101)) for name in "abc"}}, {}, "array: has 1030301 children, more than 1000000"),
        ({"values": [1], "max_parallel": 0}, {}, "array.max_parallel: "),
        ({"values": [1], "most": 3}, {}, "array.most: "),
        (3, {}, "array: "),
        ({"values": [1]}, {"name": "${vlaue}"}, "array: the spec uses ${vlaue}, but the values have value, index"),
        ({"values": [1]}, {"start_at": "soon"}, "start_at: must be a time with a time zone"),
    ],
)
def test_what_is_no_array_is_refused_by_the_field_at_fault(field: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        array(field, **fields)
    assert caught.value.message.startswith(message)
    assert caught.value.param == message.split(":")[0] or (caught.value.param or "").startswith(message.split(":")[0])
