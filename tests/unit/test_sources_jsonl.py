"""JSON lines: each kind of bad line has one outcome, and no line is lost, doubled or shifted by its neighbours."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.config.settings import Settings
from jobs.data.sources import check_columns
from jobs.data.sources.formats import block_scan
from jobs.errors import InvalidInput
from jobs.specs.inference import InputSpec
from tests.support.sources_kit import open_at, outcomes, read_all


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


def test_each_bad_line_is_an_error_with_its_physical_line(path: Path) -> None:
    """The user opens the file at that line; blank lines count there but are no rows."""
    path.write_bytes(
        b'{"text":"a"}\n'
        b"\n"
        b"   \t \n"
        b'{"text": nope}\n'  # 4
        b"[1, 2]\n"
        b'"text"\n'
        b'{"text":"\xff"}\n'
        b'{"other":1}\n'
        b'{"text":null}\n'
        b'{"text":5}\n'  # 10
        b'{"text":{"a":1}}\n'
        b"\r\n"
        b'{"text":""}\r\n'
        b'{"text":"z"}'
    )
    assert outcomes(read_all(open_at(path), 3)) == [
        "a",
        ("invalid_json_line", 4),
        ("not_an_object", 5),
        ("not_an_object", 6),
        ("invalid_utf8", 7),
        ("missing_column", 8),
        ("null_value", 9),
        ("wrong_type", 10),
        ("wrong_type", 11),
        "",
        "z",
    ]


@pytest.mark.parametrize(
    "value",
    [
        '"\\ud800"',
        '"\\udc00x"',
        "'a'",
        "01",
        '"a\x01"',
        "[" * 1100 + "]" * 1100,
    ],
)
def test_what_is_not_json_is_never_guessed_at(path: Path, value: str) -> None:
    path.write_text(f'{{"text":"a"}}\n{{"text":{value}}}\n{{"text":"b"}}\n')
    assert outcomes(read_all(open_at(path))) == ["a", ("invalid_json_line", 2), "b"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 500, '{"a": [0, NaN]}'])
def test_numbers_that_json_lacks_cost_only_the_rows_that_use_them(path: Path, value: str) -> None:
    """`json.dumps` of a data frame's row writes NaN, mostly into columns that no task reads."""
    path.write_text(f'{{"text":"a","score":{value}}}\n{{"text":{value},"score":1}}\n{{"text":"b"}}\n')
    rows = read_all(open_at(path))
    assert outcomes(rows) == ["a", ("invalid_value", 2), "b"]
    assert rows[1].error is not None
    assert "column 'text' contains" in rows[1].error.message
    keyed = read_all(open_at(path, key="score"))
    assert outcomes(keyed) == [("invalid_value", 1), ("invalid_value", 2), "b"]


@pytest.mark.parametrize("rest", ['"\\ud800"', '"a\x01"', "[" * 1100 + "]" * 1100, "'a'", "01", "{"])
def test_a_nan_excuses_nothing_else_in_its_line(path: Path, rest: str) -> None:
    path.write_text(f'{{"text":"a","n":NaN,"x":{rest}}}\n{{"text":"b"}}\n')
    assert outcomes(read_all(open_at(path))) == [("invalid_json_line", 1), "b"]


def test_two_equal_names_in_one_object_the_last_counts(path: Path) -> None:
    path.write_text('{"text":"a","text":"b"}\n')
    assert outcomes(read_all(open_at(path))) == ["b"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("7", "7"),
        ("18446744073709551615", "18446744073709551615"),
        ('"x y"', "x y"),
        ("null", None),
        ("true", "true"),
        ("1.5", "1.5"),
        ('["a"]', '["a"]'),
        ('""', ""),
    ],
)
def test_keys_are_text(path: Path, key: str, expected: str | None) -> None:
    path.write_text(f'{{"text":"a","k":{key}}}\n')
    [row] = read_all(open_at(path, key="k"))
    assert row.error is None
    assert row.key == expected


@pytest.mark.parametrize("key", ["123456789012345678901234567890", '"a\\u0000b"'])
def test_a_key_that_cannot_be_kept_exactly_is_an_error(path: Path, key: str) -> None:
    """A rounded id would join results to the wrong rows."""
    path.write_text(f'{{"text":"a","k":{key}}}\n')
    [row] = read_all(open_at(path, key="k"))
    assert row.error is not None
    assert (row.error.code, row.error.line) == ("invalid_key", 1)


def test_the_same_key_twice_is_allowed_and_a_row_may_have_none(path: Path) -> None:
    path.write_text('{"text":"a","k":1}\n{"text":"b","k":1}\n{"text":"c"}\n')
    assert [row.key for row in read_all(open_at(path, key="k"))] == ["1", "1", None]


def test_a_bad_row_keeps_its_key(path: Path) -> None:
    path.write_text('{"text":null,"k":9}\n')
    assert [row.key for row in read_all(open_at(path, key="k"))] == ["9"]


def test_inputs_that_are_not_text_pass_as_they_are(path: Path) -> None:
    path.write_text('{"q":"?","t":{"a":["1","2"]}}\n')
    [row] = read_all(open_at(path, {"query": "q", "table": "t"}))
    assert row.values == {"query": "?", "table": {"a": ["1", "2"]}}


def test_a_byte_order_mark_is_no_part_of_the_first_row(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbf{"text":"a"}\r\n{"text":"b"}\r\n')
    assert open_at(path).column_names() == ["text"]
    assert outcomes(read_all(open_at(path), 1)) == ["a", "b"]


def test_a_line_over_the_limit_is_not_held_in_memory(path: Path) -> None:
    """A file without newlines must not take the worker down."""
    with path.open("wb") as out:
        out.write(b'{"text":"a"}\n{"text":"')
        for _ in range(64):
            out.write(b"x" * 2**20)
        out.write(b'"}\n' + b" " * (4 * 2**20) + b'\n{"text":"b"}')
    source = open_at(path, settings=Settings(input_roots=[Path("/")], max_row_bytes=2**20))
    assert source.column_names() == ["text"]
    tracemalloc.start()
    rows = read_all(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcomes(rows) == ["a", ("row_too_large", 2), "b"]
    assert peak < 48 * 2**20


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize(("extra", "expected"), [(0, "fits"), (1, ("row_too_large", 1))])
def test_the_limit_counts_the_line_without_its_ending(path: Path, ending: bytes, extra: int, expected: object) -> None:
    line = json.dumps({"text": "x" * 20}).encode()
    path.write_bytes(line + b" " * extra + ending)
    source = open_at(path, settings=Settings(input_roots=[Path("/")], max_row_bytes=len(line)))
    assert outcomes(read_all(source)) == (["x" * 20] if expected == "fits" else [expected])


def test_the_columns_of_the_head_count_not_only_of_the_first_row(path: Path) -> None:
    path.write_text('{"id":1}\n{"id":2,"text":"a"}\n')
    check_columns(open_at(path), InputSpec(path=str(path)), {"text": "text"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe{\0", "UTF-16"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"PAR1....PAR1", "Parquet"),
        (b"PK\x03\x04", "zip"),
        (b"hello\nworld\n", "not JSON lines: line 1: the line is not valid JSON"),
        (b"[1,\n2]\n", "not JSON lines: line 1"),
        (b"", "has no rows"),
        (b"\n \n\r\n", "has no rows"),
        (b"\xef\xbb\xbf", "has no rows"),
    ],
)
def test_what_is_no_json_lines_file_is_refused_with_the_reason(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=reason) as refused:
        open_at(path).column_names()
    assert refused.value.param == "input.path"


def test_a_file_that_grows_while_it_is_planned_is_noticed(path: Path) -> None:
    path.write_text('{"text":"a"}\n' * 400_000)
    chunks = open_at(path).index(1000)
    next(chunks)
    with path.open("a") as out:
        out.write('{"text":"b"}\n')
    with pytest.raises(InvalidInput, match="changed"):
        list(chunks)


_LINES = st.lists(
    st.one_of(
        st.builds(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode(), st.text(max_size=60)),
        st.sampled_from(
            [b"", b" ", b"\t \r", b"{", b"[]", b"\xff", b'{"text":1}', b'{"a":1}', b" \x0b", b'  {"text":"i"}']
        ),
        st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")),
        st.integers(90, 400).map(lambda size: json.dumps({"text": "x" * size}).encode()),
    ),
    max_size=40,
)


def _expected(data: bytes, limit: int) -> list[object]:
    """The same file read whole, line by line."""
    found: list[object] = []
    for number, raw in enumerate(data.split(b"\n"), 1):
        line = raw.removesuffix(b"\r")
        if not raw.strip():
            continue
        if len(line) > limit:
            found.append(("row_too_large", number))
            continue
        try:
            value = json.loads(line.decode(), parse_constant=lambda name: 1 / 0)
        except UnicodeDecodeError:
            found.append(("invalid_utf8", number))
        except (ValueError, ZeroDivisionError):
            found.append(("invalid_json_line", number))
        else:
            if not isinstance(value, dict):
                found.append(("not_an_object", number))
            elif "text" not in value:
                found.append(("missing_column", number))
            elif value["text"] is None:
                found.append(("null_value", number))
            else:
                found.append(value["text"] if isinstance(value["text"], str) else ("wrong_type", number))
    return found


@settings(max_examples=150, deadline=None)
@given(
    lines=_LINES,
    ending=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    chunk_rows=st.integers(1, 12),
    blocks=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    data=st.data(),
)
def test_any_file_in_any_chunks_equals_reading_it_whole(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    ending: bytes,
    last: bool,
    chunk_rows: int,
    blocks: tuple[int, int],
    data: st.DataObject,
) -> None:
    """Rows that straddle blocks of any size are cut and read where a plain reader finds them."""
    content = ending.join(lines) + (ending if last else b"")
    if content[:2] in {b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b"} or content[:4] in {
        b"\x28\xb5\x2f\xfd",
        b"PK\x03\x04",
        b"PAR1",
    }:
        return
    if content.count(0) > 1:  # may be taken for UTF-16
        return
    path = tmp_path_factory.mktemp("in") / "in.jsonl"
    path.write_bytes(content)
    source = open_at(path, settings=Settings(input_roots=[Path("/")], max_row_bytes=80))
    expected = _expected(content.removeprefix(b"\xef\xbb\xbf"), 80)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_scan, "INDEX_BLOCK_BYTES", blocks[0])
        patch.setattr(block_scan, "READ_BLOCK_BYTES", blocks[1])
        if not expected:
            with pytest.raises(InvalidInput):
                list(source.index(chunk_rows))
            return
        assert outcomes(read_all(source, chunk_rows)) == expected
        chunk = data.draw(st.sampled_from(list(source.index(chunk_rows))))
        start = data.draw(st.integers(chunk.start_row, chunk.stop_row))
        stop = data.draw(st.integers(start, chunk.stop_row))
        assert outcomes(list(source.read(start, stop, chunk.locator))) == expected[start:stop]
