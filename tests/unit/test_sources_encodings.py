"""Text files in other encodings than UTF-8: read where their bytes can be cut, else refused with the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.data.sources.formats import block_scan
from jobs.data.sources.formats.encodings import text_encoding
from jobs.errors import InvalidInput
from tests.support.sources_kit import open_at, outcomes, read_all

LATIN = ["plain", "Grüße aus München", "crème"]


def _table(texts: list[str], delimiter: str = ",") -> str:
    return f"id{delimiter}text\n" + "".join(f"{at}{delimiter}{text}\n" for at, text in enumerate(texts))


@pytest.mark.parametrize(
    ("encoding", "texts"),
    [
        ("latin-1", LATIN),
        ("cp1252", [*LATIN, "5 € „so“"]),
        ("koi8-r", ["привет", "мир"]),
        ("shift_jis", ["表示", "ソース", "能力"]),
        ("gb18030", ["你好", "𠀀", "€"]),
        ("euc-kr", ["안녕"]),
        ("utf8", LATIN),
        ("utf-8-sig", LATIN),
    ],
)
@pytest.mark.parametrize("block", [1, 3, 2**20])
def test_files_in_other_encodings_are_read(
    tmp_path: Path, encoding: str, texts: list[str], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Second bytes of Shift JIS and GB 18030 may be a backslash, a digit or a vertical bar."""
    monkeypatch.setattr(block_scan, "INDEX_BLOCK_BYTES", block)
    monkeypatch.setattr(block_scan, "READ_BLOCK_BYTES", block)
    path = tmp_path / "in.csv"
    path.write_bytes(_table(texts).encode(encoding))
    source = open_at(path, encoding=encoding)
    assert source.column_names() == ["id", "text"]
    assert outcomes(read_all(source, 1)) == texts
    lines = tmp_path / "in.jsonl"
    lines.write_bytes("".join(json.dumps({"text": each}, ensure_ascii=False) + "\n" for each in texts).encode(encoding))
    assert outcomes(read_all(open_at(lines, encoding=encoding), 1)) == texts
    plain = tmp_path / "in.txt"
    plain.write_bytes("\n".join(texts).encode(encoding))
    assert outcomes(read_all(open_at(plain, encoding=encoding), 1)) == texts


@pytest.mark.parametrize("name", ["in.csv", "in.tsv", "in.jsonl", "in.json", "in.txt"])
def test_a_file_in_another_encoding_is_refused_at_its_head(tmp_path: Path, name: str) -> None:
    """Each row with an accent would be a row error, and the job complete."""
    path = tmp_path / name
    content = {
        ".csv": _table(LATIN),
        ".tsv": _table(LATIN, "\t"),
        ".txt": "\n".join(LATIN),
        ".json": json.dumps([{"text": text} for text in LATIN], ensure_ascii=False, indent=1),
        ".jsonl": "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in LATIN),
    }[path.suffix]
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"line \d+ of '.*' is not UTF-8; set the file's encoding") as refused:
        open_at(path).column_names()
    assert refused.value.param == "input.encoding"


def test_a_header_in_another_encoding_is_refused_in_plain_words(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes("größe,text\n1,a\n".encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"line 1 of '.*' is not UTF-8") as refused:
        open_at(path).column_names()
    assert refused.value.param == "input.encoding"


def test_one_damaged_row_among_good_ones_is_a_row_error(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"id,text\n1,a\n2,\xff\n3,\xc3\xa9\n")
    source = open_at(path)
    assert source.column_names() == ["id", "text"]
    assert outcomes(read_all(source)) == ["a", ("invalid_utf8", 3), "é"]
    only = tmp_path / "only.csv"
    only.write_bytes(b"id,text\n1,a\n2,\xff\n3,b\n")
    assert open_at(only).column_names() == ["id", "text"]


def test_rows_that_are_not_in_the_named_encoding_are_row_errors(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"id,text\n1,\xb0\xa1\n2,\xff\n")
    rows = read_all(open_at(path, encoding="euc-kr"))
    assert outcomes(rows) == ["가", ("invalid_encoding", 3)]


@pytest.mark.parametrize(
    ("encoding", "name"), [("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-16", "UTF-16")]
)
@pytest.mark.parametrize("file", ["in.csv", "in.jsonl", "in.txt"])
def test_utf_16_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, encoding: str, name: str, file: str
) -> None:
    path = tmp_path / file
    path.write_bytes(_table(LATIN).encode(encoding))
    with pytest.raises(InvalidInput) as refused:
        open_at(path).column_names()
    assert (
        f"is {name}; convert it to UTF-8 first: iconv -f {name} -t UTF-8 {file} > utf8-{file}" in refused.value.message
    )
    assert "\0" not in refused.value.message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-be", "cp037", "iso2022_jp", "utf-7"])
def test_encodings_that_cannot_be_cut_are_refused_with_a_command(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,a\n")
    with pytest.raises(InvalidInput, match=r"convert the file first: iconv -f") as refused:
        open_at(tmp_path / "in.csv", encoding=encoding).column_names()
    assert refused.value.param == "input.encoding"


@pytest.mark.parametrize("encoding", ["nope", "base64", "rot13", "unicode_escape", "idna", "a\0b", "../x"])
def test_what_is_no_encoding_of_text_is_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,a\n")
    with pytest.raises(InvalidInput, match="is not the name of a text encoding") as refused:
        open_at(tmp_path / "in.csv", encoding=encoding).column_names()
    assert refused.value.param == "input.encoding"


def test_a_mark_that_other_characters_share_is_refused(tmp_path: Path) -> None:
    """A backslash is the second byte of some characters of Shift JIS: it would escape what follows them."""
    path = tmp_path / "in.csv"
    path.write_bytes(_table(["表示"]).encode("shift_jis"))
    with pytest.raises(InvalidInput, match="also part of other characters in shift_jis") as refused:
        open_at(path, encoding="shift_jis", escapechar="\\").column_names()
    assert refused.value.param == "input.escapechar"
    path.write_bytes(_table(["a"], "|").encode("shift_jis"))
    with pytest.raises(InvalidInput) as refused:
        open_at(path, encoding="shift_jis").column_names()
    assert refused.value.param == "input.encoding"


def test_an_encoding_of_a_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    with pytest.raises(InvalidInput, match="can only be used with text files, but the input is parquet") as refused:
        open_at(tmp_path / "in.parquet", encoding="latin-1").column_names()
    assert refused.value.param == "input.encoding"


def test_the_bytes_that_characters_share_are_known() -> None:
    assert text_encoding("latin-1").shared == frozenset()
    assert text_encoding("euc_jp").shared == frozenset()
    assert ord("\\") in text_encoding("cp932").shared
    assert ord("5") in text_encoding("gb18030").shared
    assert not {ord(mark) for mark in ',;\t"\n\r'} & text_encoding("gb18030").shared
