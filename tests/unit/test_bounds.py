"""A spec is bounded in length, number and depth; a value beyond is an error of one sentence that names the field."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import InvalidModel, InvalidSpec, NotFound
from jobs.messages import LONGEST_SHOWN_CHARACTERS, shown
from jobs.specs.bounds import (
    DEEPEST_LEVELS,
    LONGEST_NAME_CHARACTERS,
    LONGEST_PATH_BYTES,
    LONGEST_VALUES_CHARACTERS,
    MOST_COLUMNS,
    MOST_FIELDS,
    MOST_INPUT_COMPONENTS,
    MOST_INPUT_PATHS,
    MOST_OPTIONS,
    MOST_TARGET_MODULES,
    MOST_VALUES,
)
from jobs.specs.inference import parse_spec
from scheduler.client.plain_data import parse_document

SPEC: dict[str, Any] = {"task": "fill-mask", "model": "org/model", "input": {"path": "/a.jsonl"}}
TRAINING: dict[str, Any] = {
    "kind": "training",
    "task": "text-generation",
    "model": "org/model",
    "data": {"train": "/a.jsonl"},
}
LONG = "x" * (LONGEST_PATH_BYTES + 1)
LONG_NAME = "x" * (LONGEST_NAME_CHARACTERS + 1)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def changed(document: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A document with one field, dotted, set to a value."""
    head, _, rest = field.partition(".")
    inner = document.get(head)
    return {**document, head: changed(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "x" * 201),
        ("task", "x" * 101),
        ("model", LONG),
        ("input.path", LONG),
        ("input.path", "/" + "x" * 256),
        ("input.path", "/" + "/".join(["a"] * 200)),
        ("input.path", "/a\0b"),
        ("input.path", "/**/**/**/x"),
        ("input.path", ["/a"] * (MOST_INPUT_PATHS + 1)),
        ("input.path", ["/a/b/c/d/e/f/g/h/i/j/k/l"] * (MOST_INPUT_COMPONENTS // 12)),
        ("input.columns", {f"c{number}": "x" for number in range(MOST_COLUMNS + 1)}),
        ("input.columns", {"text": LONG_NAME}),
        ("input.key", LONG_NAME),
        ("input.split", LONG_NAME),
        ("input.config", LONG_NAME),
        ("input.delimiter", ",,"),
        ("parameters", {f"p{number}": 1 for number in range(MOST_OPTIONS + 1)}),
        ("parameters", {"targets": ["x"] * MOST_VALUES}),
        ("parameters", {"targets": "x" * (LONGEST_VALUES_CHARACTERS + 1)}),
        ("parameters", {"targets": nested(DEEPEST_LEVELS + 1)}),
        ("parameters", {LONG_NAME: 1}),
        ("output", {"to": "jsonl", "path": LONG}),
        ("time_limit", "1" * 60),
        ("input", {f"f{number}": 1 for number in range(MOST_FIELDS + 1)}),
    ],
)
def test_a_spec_that_is_too_much_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(changed(SPEC, field, value))
    assert refused.value.message.startswith(field)
    assert (refused.value.param or "").startswith(field)
    assert len(refused.value.message) < 3 * LONGEST_SHOWN_CHARACTERS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.train", ["/a"] * (MOST_INPUT_PATHS + 1)),
        ("data.eval", "/" + "x" * 256),
        ("data.columns", {"text": LONG_NAME}),
        ("data.split", LONG_NAME),
        ("data.eval_split", LONG_NAME),
        ("data.config", LONG_NAME),
        ("lora.target_modules", ["x"] * (MOST_TARGET_MODULES + 1)),
        ("lora.target_modules", [LONG_NAME]),
        ("checkpoint.best", LONG_NAME),
        ("module", LONG),
        ("options", {"a": nested(DEEPEST_LEVELS + 1)}),
        ("arguments", {"a": ["x"] * (MOST_VALUES + 1)}),
        ("model", {"architecture": "bert", "config": {"a": nested(DEEPEST_LEVELS + 1)}}),
        ("model", {"architecture": "bert", "processor": LONG}),
        ("model", LONG),
    ],
)
def test_a_training_that_is_too_much_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(changed(TRAINING, field, value))
    assert refused.value.message.startswith(field)
    assert len(refused.value.message) < 3 * LONGEST_SHOWN_CHARACTERS


def test_the_largest_spec_is_taken() -> None:
    spec = parse_spec(
        {
            **SPEC,
            "name": "x" * 200,
            "model": "/" + "m/" * 100,
            "input": {"path": ["/a/b.jsonl"] * MOST_INPUT_PATHS, "key": "k" * LONGEST_NAME_CHARACTERS},
            "parameters": {"targets": ["label"] * (MOST_VALUES - 1)},
        }
    )
    assert spec.kind == "inference"


def test_a_great_many_wrong_fields_are_one_error() -> None:
    with pytest.raises(InvalidSpec, match="has 5000 fields, more than"):
        parse_spec({**SPEC, **{f"f{number}": 1 for number in range(4997)}})


@pytest.mark.parametrize(
    ("body", "is_yaml", "words"),
    [
        (b"[" + b"1," * 300_000 + b"1]", False, "must be a mapping"),
        (b'{"a": [' + b"1," * 300_000 + b"1]}", False, "more than 200000 values"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", False, "nested deeper than 64 levels"),
        (b"a: " + b"[" * 70 + b"]" * 70, True, "nested deeper than 64 levels"),
        (b"a: " + b"9" * 4000, True, "more than 100 characters"),
    ],
)
def test_a_document_that_is_too_much_is_refused(body: bytes, is_yaml: bool, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        parse_document(body, name="the body", is_yaml=is_yaml)


def test_a_number_with_colons_is_a_text_in_yaml() -> None:
    """YAML 1.1 reads it in base 60, in a time that grows with the square of its length."""
    body = b"a: 12:30\nb: " + b":".join([b"59"] * 80_000)
    document = parse_document(body, name="the body", is_yaml=True)
    assert document["a"] == "12:30"
    assert len(document["b"]) == 239_999


def test_errors_quote_little_of_a_long_value() -> None:
    long = "x" * 100_000
    assert len(InvalidModel(f"model '{long}': there is no such folder", param=long).message) < 300
    assert InvalidModel(f"model '{long}': there is no such folder").message.endswith("…': there is no such folder")
    assert len(InvalidModel("", param=long).param or "") == LONGEST_SHOWN_CHARACTERS
    assert len(NotFound(long).message) == 2000
    assert shown([long]).startswith("['xx")
    assert len(shown(long)) == len(shown(long.encode())) + 2 == LONGEST_SHOWN_CHARACTERS + 2
    sentence = f"arguments.x: trainer has no argument 'foo'; known ones: {'learning_rate, ' * 50} and 'bar'"
    assert InvalidSpec(sentence).message == sentence
