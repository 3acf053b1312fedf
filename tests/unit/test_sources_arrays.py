"""JSON arrays and plain text: read row by row from any offset, as a parser that holds them whole reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.config.settings import Settings
from jobs.data.sources.formats import block_scan
from jobs.errors import InvalidInput
from tests.support.sources_kit import open_at, outcomes, read_all


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.json"


def test_an_array_of_objects_is_read_item_by_item(path: Path) -> None:
    path.write_text('[\n {\n  "id": 1,\n  "text": "a"\n },\n {\n  "id": 2,\n  "text": "b"\n }\n]')
    source = open_at(path, key="id")
    assert source.column_names() == ["id", "text"]
    rows = read_all(source, 1)
    assert outcomes(rows) == ["a", "b"]
    assert [row.key for row in rows] == ["1", "2"]
    assert [row.line for row in rows] == [2, 6]


def test_a_json_file_may_hold_json_lines(path: Path) -> None:
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert outcomes(read_all(open_at(path), 1)) == ["a", "b"]


def test_items_that_are_wrong_are_row_errors_with_their_line(path: Path) -> None:
    path.write_text(
        '[{"text": "a"},\n7,\n{"text": "b" "x"},\n[{"text": "c"}],\n{"text": NaN},\n{"text": "d", "n": NaN},\n'
        f'{{"text": "{"x" * 100}"}},\n{{"text": "e"}}]\n'
    )
    small = Settings(input_roots=[Path("/")], max_row_bytes=60)
    assert outcomes(read_all(open_at(path, settings=small), 3)) == [
        "a",
        ("not_an_object", 2),
        ("invalid_json_line", 3),
        ("not_an_object", 4),
        ("invalid_value", 5),
        "d",
        ("row_too_large", 6),
        "e",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"text": "a"}', "not closed at the end"),
        ('[{"text": "a"}, {"text": "b]', "not closed at the end"),
        ('[{"text": "a"}}', "does not end with ]"),
        ('[{"text": "a"}]\n{"text": "b"}', "has more content after the end"),
        ("[]", "has no rows"),
        ("[ \n ] \n", "has no rows"),
        ("", "has no rows"),
    ],
)
@pytest.mark.parametrize("block", [1, 2**20])
def test_an_array_that_is_cut_or_empty_is_refused(
    path: Path, content: str, reason: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_scan, "INDEX_BLOCK_BYTES", block)
    path.write_text(content)
    with pytest.raises(InvalidInput, match=reason) as refused:
        list(open_at(path).index(10))
    assert refused.value.param == "input.path"


@pytest.mark.parametrize(
    ("name", "fields", "content", "reason"),
    [
        ("in.jsonl", {}, '[{"text": "a"}]', "set input.format to json"),
        ("in.json", {"format": "jsonl"}, '[\n{"text": "a"}]', "set input.format to json"),
        ("in.json", {}, "[1, 2]", "is not a JSON array of objects: line 1: the item is JSON but not an object"),
        ("in.json", {}, '{\n"text": "a"\n}', "is not JSON lines: line 1"),
        ("in.yaml", {}, "- a", "set input.format to jsonl, json, csv, text, parquet or dataset"),
    ],
)
def test_what_is_refused_names_the_way_out(
    tmp_path: Path, name: str, fields: dict[str, Any], content: str, reason: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInput, match=reason):
        open_at(tmp_path / name, **fields).column_names()


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 99)
    | st.text(st.sampled_from(['"', "\\", ",", "]", "[", "{", "}", "\n", "é", "a"]), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    items=st.lists(st.tuples(st.text('"\\,[]{} \nx', max_size=8), _VALUES), min_size=1, max_size=12),
    indent=st.sampled_from([None, 0, 2]),
    chunk_rows=st.integers(1, 5),
    blocks=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_any_array_in_any_chunks_equals_reading_it_whole(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[tuple[str, Any]],
    indent: int | None,
    chunk_rows: int,
    blocks: tuple[int, int],
) -> None:
    path = tmp_path_factory.mktemp("in") / "in.json"
    records = [{"other": other, "text": text} for text, other in items]
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_scan, "INDEX_BLOCK_BYTES", blocks[0])
        patch.setattr(block_scan, "READ_BLOCK_BYTES", blocks[1])
        rows = read_all(open_at(path, {"text": "text", "table": "other"}), chunk_rows)
    expected = [("null_value", None) if each["other"] is None else each["text"] for each in records]
    found = [row.values["text"] if row.error is None else (row.error.code, None) for row in rows]
    assert found == expected


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("block", [1, 2**20])
def test_each_line_of_a_text_file_is_a_row(
    tmp_path: Path, ending: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blank ones too: the results match the file line by line."""
    monkeypatch.setattr(block_scan, "INDEX_BLOCK_BYTES", block)
    monkeypatch.setattr(block_scan, "READ_BLOCK_BYTES", block)
    lines = ["I love it", "", "  ", '"quoted", not a cell', "ü", ""]
    path = tmp_path / "in.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(line + ending for line in lines).encode())
    source = open_at(path)
    assert source.column_names() == ["text"]
    assert outcomes(read_all(source, 2)) == lines
    path.write_bytes(b"one\ntwo")
    assert outcomes(read_all(open_at(path), 1)) == ["one", "two"]
    assert outcomes(read_all(open_at(path, format="text"), 1)) == ["one", "two"]
