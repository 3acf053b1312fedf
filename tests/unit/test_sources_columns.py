"""Columns: optional inputs by their own names, none where a row has none, and every file of an input looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config.settings import Settings
from jobs.data.rows import Row
from jobs.data.sources import check_columns, open_source
from jobs.data.store import Store
from jobs.errors import InvalidInput, InvalidSpec
from jobs.specs.inference import InferenceSpec, parse_spec
from tests.support.rows import write_rows
from tests.support.sources_kit import open_at, read_all

Records = list[dict[str, Any]]


def _spec(path: Path, task: str = "text-classification", **fields: Any) -> InferenceSpec:
    columns = fields.pop("columns", {})
    document = {"task": task, "model": "m", "input": {"path": str(path), "columns": columns}, **fields}
    spec = parse_spec(document)
    assert isinstance(spec, InferenceSpec)
    return spec


def _rows(spec: InferenceSpec) -> list[Row]:
    """The rows of a spec, once its columns are checked."""

    def no_upload(file_id: str) -> Any:
        raise AssertionError(file_id)

    source = open_source(
        spec.input,
        spec.columns(),
        rules=Settings(input_roots=[Path("/")]),
        store=Store("/nonexistent-store"),
        find_upload=no_upload,
        optional=spec.optional_inputs,
    )
    check_columns(source, spec.input, spec.columns(), optional=spec.optional_inputs)
    return read_all(source)


def _outcomes(rows: list[Row], name: str) -> list[Any]:
    return [row.error.code if row.error else row.values.get(name, "none") for row in rows]


@pytest.mark.parametrize(
    ("task", "name", "value", "fields"),
    [
        ("text-classification", "text_pair", "b", {}),
        ("text-generation", "parameters", {"max_new_tokens": 2}, {}),
        ("zero-shot-classification", "candidate_labels", ["x", "y"], {"parameters": {"candidate_labels": ["z"]}}),
        ("zero-shot-classification", "candidate_labels", ["x", "y"], {}),
        ("any-to-any", "image", "picture.png", {}),
        ("any-to-any", "audio", "sound.wav", {}),
        ("any-to-any", "video", "film.mp4", {}),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_an_optional_input_is_read_from_the_column_of_its_own_name(
    tmp_path: Path, task: str, name: str, value: Any, fields: dict[str, Any], mapped: bool
) -> None:
    """Unread, pairs would be classified by their first halves, and rows generated with other parameters."""
    path = write_rows(tmp_path / "in.jsonl", [{"text": "a", name: value}])
    [row] = _rows(_spec(path, task, **fields, columns={name: name} if mapped else {}))
    assert row.values == {"text": "a", name: value}


def test_word_boxes_are_read_from_the_column_of_their_own_name(tmp_path: Path) -> None:
    record = {"image": "page.png", "question": "what?", "word_boxes": [["a", [0, 0, 1, 1]]]}
    [row] = _rows(_spec(write_rows(tmp_path / "in.jsonl", [record]), "document-question-answering"))
    assert row.values == record


@pytest.mark.parametrize("mapped", [False, True])
def test_null_absent_and_empty_optional_inputs_are_none(tmp_path: Path, mapped: bool) -> None:
    records: Records = [{"text": "a", "text_pair": other} for other in ("b", None, "")] + [{"text": "a"}]
    columns = {"text_pair": "text_pair"} if mapped else {}
    path = write_rows(tmp_path / "in.jsonl", records)
    assert _outcomes(_rows(_spec(path, columns=columns)), "text_pair") == ["b", "none", "none", "none"]
    (tmp_path / "in.csv").write_text("text,text_pair\na,b\na,\n")
    assert _outcomes(_rows(_spec(tmp_path / "in.csv", columns=columns)), "text_pair") == ["b", "none"]
    pq.write_table(pa.table({"text": ["a", "a"], "text_pair": ["b", None]}), tmp_path / "in.parquet")
    assert _outcomes(_rows(_spec(tmp_path / "in.parquet", columns=columns)), "text_pair") == ["b", "none"]


def test_an_optional_picture_without_content_is_none(tmp_path: Path) -> None:
    pictures = [{"bytes": None, "path": None}, None, {"bytes": None, "path": "a.png"}]
    pq.write_table(pa.table({"text": ["a", "b", "c"], "image": pictures}), tmp_path / "in.parquet")
    assert _outcomes(_rows(_spec(tmp_path / "in.parquet", "any-to-any")), "image") == ["none", "none", "a.png"]
    required = _rows(_spec(tmp_path / "in.parquet", "image-classification"))
    assert _outcomes(required, "image") == ["null_value", "null_value", "a.png"]


def test_rows_without_labels_use_the_jobs_or_are_errors(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", [{"text": "a", "candidate_labels": ["x"]}, {"text": "b"}])
    task = "zero-shot-classification"
    with_own = _spec(path, task, parameters={"candidate_labels": ["z"]})
    assert _outcomes(_rows(with_own), "candidate_labels") == [["x"], "none"]
    assert _outcomes(_rows(_spec(path, task)), "candidate_labels") == [["x"], "missing_column"]


def test_an_optional_input_that_is_null_in_the_spec_is_not_read(tmp_path: Path) -> None:
    """A column may have an input's name and mean something else."""
    path = write_rows(tmp_path / "in.jsonl", [{"text": "a", "parameters": "of a function"}])
    [row] = _rows(_spec(path, "text-generation", columns={"parameters": None}))
    assert row.values == {"text": "a"}
    with pytest.raises(InvalidSpec, match=r"input\.columns\.text: must name a column") as refused:
        _spec(path, columns={"text": None})
    assert refused.value.param == "input.columns.text"


def test_only_some_files_may_have_an_optional_column(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("text\na\n")
    (tmp_path / "2.csv").write_text("text,text_pair\nb,c\n")
    for columns in ({}, {"text_pair": "text_pair"}):
        assert _outcomes(_rows(_spec(tmp_path / "*.csv", columns=columns)), "text_pair") == ["none", "c"]
    with pytest.raises(InvalidInput, match="the input has no column 'pair'; it has text, text_pair") as refused:
        _rows(_spec(tmp_path / "*.csv", columns={"text_pair": "pair"}))
    assert refused.value.param == "input.columns.text_pair"


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (["id", "text", "text"], r"'.*b\.csv' has more than one column 'text'"),
        (["id", "body"], r"'.*b\.csv' has no column 'text'; it has id, body"),
        (["text", "id", "id"], r"'.*b\.csv' has more than one column 'id'"),
        (["text"], r"'.*b\.csv' has no column 'id'"),
        (["id", "text", "text_pair", "text_pair"], r"'.*b\.csv' has more than one column 'text_pair'"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_columns_of_every_file_are_checked(tmp_path: Path, second: list[str], reason: str, kind: str) -> None:
    """Otherwise the last of two columns would be used without an error."""
    for name, columns in (("a", ["id", "text"]), ("b", second)):
        if kind == "csv":
            (tmp_path / f"{name}.csv").write_text(f"{','.join(columns)}\n{','.join('x' * len(columns))}\n")
        else:
            table = pa.Table.from_arrays([pa.array(["x"]) for _ in columns], columns)
            pq.write_table(table, tmp_path / f"{name}.parquet")
    spec = _spec(tmp_path / f"*.{kind}")
    spec = spec.model_copy(update={"input": spec.input.model_copy(update={"key": "id"})})
    with pytest.raises(InvalidInput, match=reason.replace("csv", kind)):
        _rows(spec)


@pytest.mark.parametrize(("name", "fields"), [("in.csv", {}), ("in.txt", {"format": "csv"})])
def test_lines_taken_for_a_table_name_the_way_out(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    (tmp_path / name).write_text("I love it\nI hate it\n")
    spec = _spec(tmp_path / name)
    spec = spec.model_copy(update={"input": spec.input.model_copy(update=fields)})
    with pytest.raises(
        InvalidInput, match=r"it has I love it; if it has no header and each line is a row, set input\.format"
    ):
        _rows(spec)


def test_a_submission_looks_at_the_first_files_only(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.csv").write_text("text\na\n" if number < 2 else "body\na\n")
    spec = _spec(tmp_path / "*.csv")
    source = open_at(tmp_path / "*.csv")
    check_columns(source, spec.input, spec.columns(), optional=spec.optional_inputs, most_files=2)
    with pytest.raises(InvalidInput, match=r"2\.csv' has no column 'text'"):
        check_columns(source, spec.input, spec.columns(), optional=spec.optional_inputs)
    with pytest.raises(InterruptedError):
        check_columns(source, spec.input, spec.columns(), is_wanted=lambda: False)
