"""Specs: valid values are accepted, and each error is one sentence that names the field."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import InvalidSpec
from jobs.specs.inference import Priority, model_key, parse_spec

GOOD: dict[str, Any] = {
    "kind": "inference",
    "task": "text-classification",
    "model": "m",
    "input": {"path": "rows.jsonl"},
}


def test_the_shortest_spec_has_the_documented_defaults() -> None:
    spec = parse_spec({"task": "embeddings", "model": "m", "input": {"path": "rows.jsonl"}})
    assert (spec.version, spec.kind, spec.priority, spec.dtype, spec.output.to) == (
        1,
        "inference",
        "normal",
        "auto",
        "database",
    )
    assert spec.columns() == {"text": "text"}
    assert parse_spec(spec.model_dump(mode="json")) == spec, "a stored spec reads back as itself"


def test_aliases_of_tasks_are_taken_as_their_task() -> None:
    assert parse_spec({**GOOD, "task": "ner"}).task == "token-classification"
    assert model_key(parse_spec({**GOOD, "task": "sentiment-analysis"})) == "text-classification|m|auto"


@pytest.mark.parametrize(
    ("value", "seconds"), [(90, 90), ("90", 90), ("90s", 90), ("2h", 7200), ("1h30m", 5400), ("1d", 86400)]
)
def test_durations_are_read_in_every_documented_form(value: object, seconds: int) -> None:
    assert parse_spec({**GOOD, "time_limit": value}).time_limit == seconds


def test_priorities_are_ordered() -> None:
    assert [priority.rank for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"task": "embedings"}, "task", "did you mean 'embeddings'"),
        ({"task": "no such thing at all"}, "task", "known tasks"),
        ({"colour": "red"}, "colour", "unknown field"),
        ({"paramters": {}}, "paramters", "unknown field; did you mean 'parameters'?"),
        ({"output": {"pth": "x"}}, "output.pth", "unknown field; did you mean 'path'?"),
        ({"input": {"path": "x", "sep": ","}}, "input.sep", "unknown field"),
        ({"input": {}}, "input.path", "is required"),
        ({"model": ""}, "model", "model"),
        ({"input": {"path": "x", "columns": {"txt": "body"}}}, "input.columns.txt", "it has text, text_pair"),
        ({"batching": {"max_tokens": 0}}, "batching.max_tokens", "batching.max_tokens"),
        ({"time_limit": "2 fortnights"}, "time_limit", "duration"),
        ({"time_limit": 0}, "time_limit", "greater than 0"),
        ({"output": {"path": "x"}}, "output.path", "output.to"),
        ({"kind": "baking"}, "kind", "'baking' is not a kind of job"),
        ({"version": 2}, "version", "version"),
        ({"parameters": {"top_kk": 1}}, "parameters.top_kk", "top_k"),
        ({"batching": {"max_tokens": "many"}}, "batching.max_tokens", "must be 'auto' or a whole number"),
        ({"batching": {"max_tokens": 10**40}}, "batching.max_tokens", "must be 'auto' or at most 2147483647"),
        ({"batching": {"chunk_rows": 10**7}}, "batching.chunk_rows", "must be 'auto' or at most 1000000"),
        ({"slots": 5}, "slots", "must be a mapping of fields to values"),
        ({"slots": {"max": 1.5}}, "slots.max", "must be a whole number"),
        ({"input": "rows.jsonl"}, "input", "must be a mapping of fields to values"),
        ({"input": {"path": 5}}, "input.path", "must be a text or a list"),
        ({"input": {"path": [5]}}, "input.path", "must be a text"),
        ({"input": {"path": ""}}, "input.path", "must not be empty"),
        ({"input": {"path": "x", "columns": {"text": 5}}}, "input.columns.text", "must be a text"),
        ({"input": {"path": "x", "delimiter": "::"}}, "input.delimiter", "must have at most 1 character"),
        ({"dtype": "float64"}, "dtype", "must be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ({"name": "x" * 201}, "name", "must have at most 200 characters"),
        ({"parameters": []}, "parameters", "must be a mapping of names to values"),
    ],
)
def test_a_bad_field_is_refused_by_name(change: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec({**GOOD, **change})
    assert caught.value.param == param
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert "Input should" not in caught.value.message, "pydantic's words are for programmers"


@pytest.mark.parametrize(
    ("task", "parameters", "param"),
    [
        ("feature-extraction", {"tokenize_kwargs": {"padding": "max_length", "max_length": 10**10}}, "tokenize_kwargs"),
        ("image-text-to-text", {"processor_kwargs": {"text": [{"max_length": 10**10}]}}, "processor_kwargs"),
        ("fill-mask", {"tokenizer_kwargs": {"max_length": 10**10}}, None),
        ("text-classification", {"max_length": 10**10}, "max_length"),
        ("video-classification", {"num_frames": 10**9}, "num_frames"),
        ("mask-generation", {"points_per_crop": 10**6}, "points_per_crop"),
        ("mask-generation", {"crops_n_layers": 40}, "crops_n_layers"),
    ],
)
def test_a_number_that_would_fill_the_memory_is_refused(task: str, parameters: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSpec, match=r"must be (at most|a whole number|a mapping)") as caught:
        parse_spec({**GOOD, "task": task, "parameters": parameters})
    assert (caught.value.param or "").startswith(f"parameters.{param or 'tokenizer_kwargs'}")


@pytest.mark.parametrize(
    "template", ["no place", "", "{", "{} and {}", "{label}", "{{}}", "{0.__class__}", "{:>2000000000}", "{!r}", 5]
)
def test_a_hypothesis_has_one_plain_place_for_the_label(template: object) -> None:
    """A width would fill the host's memory, and a template without a placeholder is the same for every label."""
    job = {**GOOD, "task": "zero-shot-classification", "parameters": {"candidate_labels": ["a"]}}
    for good in ("It is {}.", "{0}, yes {0}", "{{}} {}", None):
        parse_spec({**job, "parameters": {**job["parameters"], "hypothesis_template": good}})
    with pytest.raises(InvalidSpec, match="placeholder for the label") as caught:
        parse_spec({**job, "parameters": {**job["parameters"], "hypothesis_template": template}})
    assert caught.value.param == "parameters.hypothesis_template"


@pytest.mark.parametrize("labels", ["", ",", " , ", [], [1]])
def test_labels_of_a_job_are_texts_and_not_none(labels: object) -> None:
    job = {**GOOD, "task": "zero-shot-classification"}
    with pytest.raises(InvalidSpec, match="must be a list of labels"):
        parse_spec({**job, "parameters": {"candidate_labels": labels}})


@pytest.mark.parametrize("document", [None, [], "text", 3])
def test_a_spec_that_is_no_mapping_is_refused(document: object) -> None:
    with pytest.raises(InvalidSpec, match="must be a mapping"):
        parse_spec(document)
