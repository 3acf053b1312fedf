"""CSV: quoted newlines, doubled quotes and ragged rows, cut where Python's csv module would cut them."""

from __future__ import annotations

import csv
import io
import re
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
    return tmp_path / "in.csv"


def test_quoted_newlines_and_quotes_stay_in_their_cell(path: Path) -> None:
    path.write_bytes(b'id,text\n1,"two\nlines"\n2,"say ""hi"",\n"\n3,plain\n4,""\n5,\n6,5" disk\n7,"a""\n"\n8,z')
    assert outcomes(read_all(open_at(path), 2)) == [
        "two\nlines",
        'say "hi",\n',
        "plain",
        "",
        "",
        '5" disk',
        'a"\n',
        "z",
    ]


def test_bad_rows_are_errors_with_the_line_they_start_on(path: Path) -> None:
    path.write_bytes(
        b"id,text\n"
        b'1,"a\nb"\n'
        b"2\n"  # 4
        b"\n"
        b"3,c,d\n"
        b'4,"e"f\n'  # 7
        b"5,\xff\n"
        b"6,g\rh\n"
        b"7,i\r\n"
        b'8,"never closed\n'  # 11
    )
    assert outcomes(read_all(open_at(path), 2)) == [
        "a\nb",
        ("invalid_csv_row", 4),
        ("invalid_csv_row", 6),
        ("invalid_csv_row", 7),
        ("invalid_utf8", 8),
        ("invalid_csv_row", 9),
        "i",
        ("invalid_csv_row", 11),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_delimiter_and_byte_order_mark_are_found_out(path: Path, delimiter: str, mark: bytes, ending: str) -> None:
    lines = [f'id{delimiter}"te,;|xt"{delimiter}text', f"1{delimiter}b{delimiter}ü", f'2{delimiter}"\n"{delimiter}"d"']
    path.write_bytes(mark + ending.join(lines).encode())
    source = open_at(path, key="id")
    assert source.column_names() == ["id", "te,;|xt", "text"]
    assert [(row.key, row.values) for row in read_all(source)] == [("1", {"text": "ü"}), ("2", {"text": "d"})]


def test_the_given_delimiter_wins_and_tsv_is_by_tabs(path: Path, tmp_path: Path) -> None:
    path.write_text("a,b,c#text\n1,2,3#x\n")
    assert outcomes(read_all(open_at(path, delimiter="#"))) == ["x"]
    tabs = tmp_path / "in.tsv"
    tabs.write_text("a,b,c\ttext\n1,2,3\ty\n")
    assert outcomes(read_all(open_at(tabs))) == ["y"]


def test_one_column_needs_no_delimiter(path: Path) -> None:
    path.write_text('text\na b\n\n""\n  \nc\n')
    assert outcomes(read_all(open_at(path))) == ["a b", "", "  ", "c"]


@pytest.mark.parametrize("delimiter", ['"', "\n", "é"])
def test_an_impossible_delimiter_is_refused(path: Path, delimiter: str) -> None:
    path.write_text("text\na\n")
    with pytest.raises(InvalidInput) as refused:
        open_at(path, delimiter=delimiter).column_names()
    assert refused.value.param == "input.delimiter"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"1,2.5,-3e4\n4,5,6\n", "no header line"),
        (b",,\n", "no header line"),
        (b"a,b\r1,2\r", "CR only"),
        (b'"a,b\n1,2\n', "no header line"),
        (b"", "has no rows"),
        (b"\r\n\n", "has no rows"),
        (b"\xff\xfet\0", "UTF-16"),
    ],
)
def test_a_file_without_a_header_is_refused(path: Path, content: bytes, reason: str) -> None:
    """Its first row would be taken for names and never computed."""
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=reason) as refused:
        open_at(path).column_names()
    assert refused.value.param == "input.path"


def test_a_header_alone_has_no_rows(path: Path) -> None:
    path.write_text("id,text\n")
    assert open_at(path).column_names() == ["id", "text"]
    with pytest.raises(InvalidInput, match="has no rows"):
        list(open_at(path).index(10))


def test_files_of_one_job_may_order_their_columns_differently(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("id,text\n1,a\n")
    (tmp_path / "2.csv").write_text("text;id\nb;2\n")
    assert [(row.key, row.values["text"]) for row in read_all(open_at(tmp_path / "*.csv", key="id"))] == [
        ("1", "a"),
        ("2", "b"),
    ]


def _records(data: bytes, quote: bytes, escape: bytes) -> tuple[list[tuple[bytes, int]], int]:
    """Records with their lines, found one byte at a time by the rules of Python's csv module.

    Returns:
        The records, and how many lines a quote swallows that is open at the end.
    """
    found, start, line, start_line, at_field_start, in_quotes, closed = [], 0, 1, 1, True, False, False
    is_escaped, opened_line = False, 0
    for at in range(len(data)):
        byte = data[at : at + 1]
        if is_escaped:
            is_escaped = at_field_start = closed = False
            line += byte == b"\n"
            continue
        if byte == escape:
            is_escaped, at_field_start, closed = True, False, False
            continue
        if in_quotes:
            in_quotes, closed = byte != quote, byte == quote
        elif byte == quote and (at_field_start or closed):
            in_quotes, closed, opened_line = True, False, line
        else:
            closed = False
            if byte == b"\n":
                found.append((data[start:at], start_line))
                start, start_line = at + 1, line + 1
        line += byte == b"\n"
        at_field_start = not in_quotes and byte in {b",", b"\n"}
    found.append((data[start:], start_line))
    records = [(record.removesuffix(b"\r"), number) for record, number in found if record.strip(b"\r\n")]
    return records, line - data.endswith(b"\n") - opened_line if in_quotes else 0


def _expected(records: list[tuple[bytes, int]], limit: int, options: dict[str, Any]) -> list[object]:
    outcomes: list[object] = []
    for record, line in records:
        if len(record) > limit:
            outcomes.append(("row_too_large", line))
            continue
        try:
            text = record.decode()
            lines = re.split(r"(?<=\n)", text + "\n")[:-1] if "escapechar" in options and "\n" in text else [text]
            [cells] = csv.reader(lines, strict=True, **options)
        except UnicodeDecodeError:
            outcomes.append(("invalid_utf8", line))
        except (csv.Error, ValueError):  # ValueError: the record is several
            outcomes.append(("invalid_csv_row", line))
        else:
            outcomes.append(cells[1] if len(cells) == 2 else ("invalid_csv_row", line))
    return outcomes


DIALECTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"quoting": "none"}, {"quoting": csv.QUOTE_NONE}),
    ({"escapechar": "\\"}, {"escapechar": "\\"}),
    ({"quoting": "none", "escapechar": "\\"}, {"quoting": csv.QUOTE_NONE, "escapechar": "\\"}),
    ({"quotechar": "'", "escapechar": "|"}, {"quotechar": "'", "escapechar": "|"}),
]
"""Fields of the spec, and the options of Python's csv module that mean the same."""
_NASTY = st.lists(
    st.sampled_from(
        [
            b'"',
            b'""',
            b"\\",
            b'\\"',
            b"\\\\",
            b"'",
            b"|",
            b",",
            b"\n",
            b"\r\n",
            b"\r",
            b"a",
            b"b c",
            "é".encode(),
            b"\xff",
            b"x" * 70,
            b'"x,y"',
            b'\n1,"',
        ]
    ),
    max_size=60,
).map(b"".join)
_WELL_FORMED = st.lists(st.tuples(st.text(max_size=12), st.text(max_size=40)), max_size=25)


@settings(max_examples=300, deadline=None)
@given(
    body=_NASTY,
    dialect=st.sampled_from(DIALECTS),
    chunk_rows=st.integers(1, 9),
    blocks=st.tuples(st.integers(1, 48), st.integers(1, 48)),
    data=st.data(),
)
def test_any_bytes_in_any_chunks_equal_reading_them_whole(
    tmp_path_factory: pytest.TempPathFactory,
    body: bytes,
    dialect: tuple[dict[str, Any], dict[str, Any]],
    chunk_rows: int,
    blocks: tuple[int, int],
    data: st.DataObject,
) -> None:
    """Quotes and newlines that straddle blocks of any size are read as if the file were one block."""
    path = tmp_path_factory.mktemp("in") / "in.csv"
    path.write_bytes(b"id,text\n" + body)
    fields, options = dialect
    source = open_at(path, settings=Settings(input_roots=[Path("/")], max_row_bytes=60), delimiter=",", **fields)
    quote = b"" if fields.get("quoting") == "none" else fields.get("quotechar", '"').encode()
    records, num_swallowed = _records(b"id,text\n" + body, quote, fields.get("escapechar", "").encode())
    expected = _expected(records, 60, options)[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_scan, "INDEX_BLOCK_BYTES", blocks[0])
        patch.setattr(block_scan, "READ_BLOCK_BYTES", blocks[1])
        if not expected or num_swallowed:
            with pytest.raises(InvalidInput, match="swallows" if num_swallowed else "has no rows"):
                list(source.index(chunk_rows))
            return
        assert outcomes(read_all(source, chunk_rows)) == expected
        chunk = data.draw(st.sampled_from(list(source.index(chunk_rows))))
        start = data.draw(st.integers(chunk.start_row, chunk.stop_row))
        stop = data.draw(st.integers(start, chunk.stop_row))
        assert outcomes(list(source.read(start, stop, chunk.locator))) == expected[start:stop]


@settings(max_examples=150, deadline=None)
@given(
    rows=_WELL_FORMED, ending=st.sampled_from(["\n", "\r\n"]), chunk_rows=st.integers(1, 9), block=st.integers(1, 64)
)
def test_what_the_csv_module_writes_comes_back_as_it_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], ending: str, chunk_rows: int, block: int
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=ending, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "text"), *rows])
    path = tmp_path_factory.mktemp("in") / "in.csv"
    path.write_bytes(text.getvalue().encode(errors="replace"))
    with path.open(newline="", encoding="utf-8") as handle:
        expected = [cells[1] for cells in csv.reader(handle)][1:]
    if not expected:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_scan, "INDEX_BLOCK_BYTES", block)
        patch.setattr(block_scan, "READ_BLOCK_BYTES", block)
        assert outcomes(read_all(open_at(path), chunk_rows)) == expected
