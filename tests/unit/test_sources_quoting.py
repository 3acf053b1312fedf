"""CSV and TSV files with quotes, with quotes that are text, and with other ways to escape them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.data.sources.formats import block_scan
from jobs.errors import InvalidInput
from tests.support.sources_kit import open_at, outcomes, read_all

SPARK = (
    b'id,text\n1,"plain"\n2,"2\\" seam"\n3,"2\\" seam, blue"\n4,"text with \\" escaped quote"\n'
    b'5,where did I go\n6,"also \\" missing"\n7,fourth\n'
)


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    return tmp_path / "in.tsv"


@pytest.mark.parametrize(
    "lines",
    [
        ["plain", '"Hello there', "three", "four", '"Bye now', "six"],
        ["plain", '"Hello there', "three", "four"],
        ['"I went home.', "Then I slept.", "I woke late.", 'That was it."', "last line"],
        ['say "hi"', '5" disk', '"', 'a "quoted" word'],
    ],
)
@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_quotes_in_a_tsv_file_are_text(
    tsv: Path, lines: list[str], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line is a row, as IANA's text/tab-separated-values has it; taken for CSV, lines would vanish in a cell."""
    monkeypatch.setattr(block_scan, "INDEX_BLOCK_BYTES", block)
    tsv.write_text("id\ttext\n" + "".join(f"{at}\t{line}\n" for at, line in enumerate(lines)))
    source = open_at(tsv, key="id")
    assert source.column_names() == ["id", "text"]
    assert outcomes(read_all(source, 2)) == lines


@pytest.mark.parametrize("cell", ['"one"', '""', '"a ""b"""', '"two\nlines"', '"0: ""a"", and\n\na third line"'])
@pytest.mark.parametrize("block", [1, 5, 2**20])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_tsv_file_with_whole_cells_in_quotes_needs_a_quoting(
    tsv: Path, cell: str, block: int, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_scan, "INDEX_BLOCK_BYTES", block)
    tsv.write_bytes(f"id\ttext{ending}1\tplain{ending}2\t{cell}{ending}".encode())
    with pytest.raises(InvalidInput, match=r"line 3 of '.*' has a cell in quotes; set it to none") as refused:
        list(open_at(tsv).index(1))
    assert refused.value.param == "input.quoting"
    if "\n" not in cell:
        assert outcomes(read_all(open_at(tsv, quoting="none"))) == ["plain", cell]
    inner = cell[1:-1].replace('""', '"')
    assert outcomes(read_all(open_at(tsv, quoting="minimal"))) == ["plain", inner]


def test_the_last_cell_of_a_tsv_file_may_stand_in_quotes_too(tsv: Path) -> None:
    tsv.write_text('id\ttext\n1\tplain\n2\t"one"')
    with pytest.raises(InvalidInput, match="line 3 of"):
        list(open_at(tsv).index(1))


def test_a_tsv_file_whose_header_is_in_quotes_has_quotes(tsv: Path) -> None:
    tsv.write_text('"id"\t"text"\n"1"\t"two\nlines"\n"2"\tplain\n')
    source = open_at(tsv, key="id")
    assert source.column_names() == ["id", "text"]
    assert outcomes(read_all(source)) == ["two\nlines", "plain"]


def test_a_plan_of_a_tsv_file_that_older_versions_made_keeps_its_quotes(tsv: Path) -> None:
    tsv.write_text('id\ttext\n1\t"two\nlines"\n2\tplain\n')
    [chunk] = open_at(tsv, quoting="minimal").index(10)
    assert "unquoted" not in chunk.locator
    assert outcomes(list(open_at(tsv).read(0, 2, chunk.locator))) == ["two\nlines", "plain"]


def test_a_linked_tsv_file_is_read_by_the_name_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text('a,b,c\ttext\n1,2,3\t"x\n')
    (tmp_path / "in.tsv").symlink_to(tmp_path / "blob")
    assert outcomes(read_all(open_at(tmp_path / "in.tsv"))) == ['"x']


def test_csv_files_may_have_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('id,text\n1,"a\n2,b"\n3,"c"\n')
    assert outcomes(read_all(open_at(path, quoting="none"))) == ['"a', 'b"', '"c"']


def test_a_quote_that_is_never_closed_is_refused_with_its_lines(tmp_path: Path) -> None:
    """A job over the rows before it would complete, with most of the file in one row error."""
    path = tmp_path / "in.csv"
    path.write_text('id,text\n1,"two\nlines"\n2,"open\n3,c\n4,d\n')
    with pytest.raises(InvalidInput, match=r"the quote that opens on line 4 .* swallows the 2 lines after") as refused:
        list(open_at(path).index(100))
    assert refused.value.param == "input.path"
    assert "input.quoting" in refused.value.message


def test_a_quote_left_open_in_the_last_line_costs_that_row(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('id,text\n1,a\n2,"open\n')
    assert outcomes(read_all(open_at(path))) == ["a", ("invalid_csv_row", 3)]


def test_a_row_error_names_the_lines_that_its_quote_swallowed(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('id,text\n1,a\n2,"Hello\n3,c\n4,d\n5,"Bye\n6,f\n')
    rows = read_all(open_at(path))
    assert outcomes(rows) == ["a", ("invalid_csv_row", 3), "f"]
    assert rows[1].error is not None
    assert "the quote that opens on line 3 swallows the 3 lines after it" in rows[1].error.message
    assert "set input.quoting to none" in rows[1].error.message


def test_backslashes_escape_quotes_if_the_spec_asks_for_it(tmp_path: Path) -> None:
    """Spark, MySQL and Postgres write them; without a word the message names the field."""
    path = tmp_path / "in.csv"
    path.write_bytes(SPARK)
    rows = read_all(open_at(path))
    wrong = [row.error for row in rows if row.error]
    assert [error.line for error in wrong] == [3, 4, 5, 7]
    assert all("input.escapechar" in error.message for error in wrong)
    expected = ["plain", '2" seam', '2" seam, blue', 'text with " escaped quote', "where did I go"]
    expected += ['also " missing', "fourth"]
    assert outcomes(read_all(open_at(path, escapechar="\\"), 2)) == expected


def test_other_quote_characters_and_escaped_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"id,text\n1,'a, \"b\"'\n2,c\\\nd\n3,e\\,f\n4,'g\\'\n5,'\n")
    source = open_at(path, quotechar="'", escapechar="\\")
    assert outcomes(read_all(source, 1)) == ['a, "b"', "c\nd", "e,f", "g'\n5,"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"delimiter": '"'}, "input.delimiter"),
        ({"delimiter": ",", "escapechar": ","}, "input.delimiter"),
        ({"escapechar": '"'}, "input.escapechar"),
        ({"quotechar": "\n"}, "input.quotechar"),
        ({"escapechar": "é"}, "input.escapechar"),
    ],
)
def test_ambiguous_quoting_characters_are_refused(tsv: Path, fields: dict[str, Any], param: str) -> None:
    tsv.write_text("id\ttext\n1\ta\n")
    with pytest.raises(InvalidInput) as refused:
        open_at(tsv, **fields).column_names()
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"quoting": "none"}, "input.quoting"),
        ({"quotechar": "'"}, "input.quotechar"),
        ({"escapechar": "\\"}, "input.escapechar"),
    ],
)
def test_fields_of_csv_files_are_refused_for_others(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InvalidInput, match="can only be used with CSV files, but the input is jsonl") as refused:
        open_at(tmp_path / "in.jsonl", **fields).column_names()
    assert refused.value.param == param
