"""Results and artifacts in a user's own file: exact formats, whole files only, one clear sentence where none can be."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.data.atomic import write_aside
from jobs.data.rows import Result, RowError
from jobs.data.sinks.export import ExportFormat, deliver_output, open_writer
from jobs.data.store import Store
from jobs.errors import InvalidOutput, NotFound

FORMATS = get_args(ExportFormat)
ROWS = [
    Result(0, "r0", [{"label": 'a,"b"\r\nc', "score": 0.5}]),
    Result(1, None, error=RowError("null_value", "no\ntext", line=2)),
    Result(2, 'é,"\n\U0001f600', "x"),
]
VECTORS = [Result(0, "r0", np.array([0.5, -2.0], np.float32)), Result(1, None, error=RowError("null_value", "no text"))]


def export_results(results: Iterable[Result], fmt: ExportFormat, path: Path, *, vector_output: bool) -> int:
    """Write results to a local file, which appears whole or not at all; how many they were."""
    with write_aside(path) as out, open_writer(fmt, out, vector_output=vector_output) as writer:
        return writer.add(results)


def test_csv_has_four_columns_with_json_text(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    assert export_results(ROWS, "csv", path, vector_output=False) == 3
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["row_index", "key", "output", "error"]
    assert [row[:2] for row in rows] == [["0", "r0"], ["1", ""], ["2", 'é,"\n\U0001f600']]
    assert [json.loads(row[2]) if row[2] else None for row in rows] == [ROWS[0].output, None, "x"]
    assert json.loads(rows[1][3]) == {"code": "null_value", "message": "no\ntext", "line": 2}


@pytest.mark.parametrize(
    ("key", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("＝1", "'＝1"),
        ("-5", "-5"),
        ("+1.5e3", "+1.5e3"),
        ("a=1", "a=1"),
        ("", ""),
    ],
)
def test_csv_keys_are_no_formulas_and_other_formats_keep_them(tmp_path: Path, key: str, cell: str) -> None:
    """A spreadsheet that opens an export must not run a formula that came in with a row."""
    result = Result(0, key, -1.5)
    export_results([result], "csv", tmp_path / "out.csv", vector_output=False)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        _, row = csv.reader(file)
    assert row == ["0", cell, "-1.5", ""]
    export_results([result], "jsonl", tmp_path / "out.jsonl", vector_output=False)
    assert json.loads((tmp_path / "out.jsonl").read_text())["key"] == key


def test_csv_writes_a_vector_as_a_json_list(tmp_path: Path) -> None:
    export_results(VECTORS, "csv", tmp_path / "out.csv", vector_output=True)
    assert (tmp_path / "out.csv").read_text() == (
        'row_index,key,output,error\n0,r0,"[0.5,-2.0]",\n1,,,"{""code"":""null_value"",""message"":""no text""}"\n'
    )


def test_jsonl_has_one_line_for_each_result(tmp_path: Path) -> None:
    assert export_results(VECTORS, "jsonl", tmp_path / "out.jsonl", vector_output=True) == 2
    assert (tmp_path / "out.jsonl").read_bytes().splitlines() == [
        b'{"row_index":0,"key":"r0","output":[0.5,-2.0],"error":null}',
        b'{"row_index":1,"key":null,"output":null,"error":{"code":"null_value","message":"no text"}}',
    ]


def test_parquet_keeps_vectors_as_lists_of_floats(tmp_path: Path) -> None:
    assert export_results(VECTORS, "parquet", tmp_path / "out.parquet", vector_output=True) == 2
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["row_index", "key", "output", "error"]
    assert str(table.schema.field("output").type).startswith("list<")
    assert table["output"].to_pylist() == [[0.5, -2.0], None]


@pytest.mark.parametrize("fmt", FORMATS)
def test_no_results_make_an_empty_but_valid_file(fmt: ExportFormat, tmp_path: Path) -> None:
    path = tmp_path / "out"
    assert export_results([], fmt, path, vector_output=False) == 0
    if fmt == "parquet":
        assert pq.read_table(path).num_rows == 0
    else:
        assert path.read_text() == ("row_index,key,output,error\n" if fmt == "csv" else "")


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_stream_that_breaks_leaves_the_older_file_and_nothing_else(fmt: ExportFormat, tmp_path: Path) -> None:
    def broken() -> Iterator[Result]:
        yield ROWS[0]
        raise ConnectionResetError("the API went away")

    path = tmp_path / "out"
    path.write_bytes(b"older")
    with pytest.raises(ConnectionResetError):
        export_results(broken(), fmt, path, vector_output=False)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_an_older_file_is_replaced_and_the_umask_rules(tmp_path: Path) -> None:
    """A file only its writer could read would be of no use to the team around."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"older and longer" * 1000)
    before = os.umask(0o027)
    try:
        export_results(ROWS[2:], "jsonl", path, vector_output=False)
    finally:
        os.umask(before)
    assert path.read_bytes().count(b"\n") == 1
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/out.csv", "No such file or directory"),
        ("file/out.csv", "Not a directory"),
        ("folder", "exists already and is not a regular file"),
        ("link", "exists already and is not a regular file"),
        ("pipe", "exists already and is not a regular file"),
        ("x" * 300, "File name too long"),
        ("a\0b", "null byte"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_sentence(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InvalidOutput, match=message) as refused:
        export_results(ROWS, "jsonl", tmp_path / name, vector_output=False)
    assert refused.value.param == "output.path"
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="a user of one's own is needed to lose a permission")
def test_a_folder_without_permission_is_a_user_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(InvalidOutput, match="Permission denied"):
            export_results(ROWS, "jsonl", tmp_path / "out.jsonl", vector_output=False)
    finally:
        os.seteuid(0)


def test_a_full_disk_is_the_machines_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The kernel refuses to write on, as it does on a full disk; blaming the user would forbid the retry."""
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from jobs.errors import ServiceUnavailable; from jobs.data.rows import Result\n"
        "from jobs.data.atomic import write_aside; from jobs.data.sinks.export import open_writer\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    with write_aside(Path(sys.argv[1])) as out, open_writer(sys.argv[2], out, vector_output=False) as to:\n"
        "        to.add([Result(0, None, 'x' * 200_000)])\n"
        "except ServiceUnavailable as error: print(error)\n"
    )
    for fmt in ("jsonl", "csv"):
        command = [sys.executable, "-c", script, str(tmp_path / "out"), fmt]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout == f"writing {tmp_path / 'out'} failed: File too large\n"
        assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_finished_artifact_is_delivered_whole(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    stored = store.put("jobs/j/artifacts/results.jsonl", [b"line\n"] * 600_000)
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"older")
    deliver_output(path, store, stored.key)
    assert path.read_bytes() == b"line\n" * 600_000
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.jsonl", "store"]


def test_a_missing_result_keeps_the_older_output_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"older")
    with pytest.raises(NotFound):
        deliver_output(path, Store(str(tmp_path / "store")), "jobs/j/artifacts/results.jsonl")
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_writer_removes_the_files_of_a_killed_one(tmp_path: Path) -> None:
    """Otherwise each death during the export would leave a hidden file as large as the output in the user's folder."""
    script = (
        "import os, sys; from pathlib import Path; from jobs.data.atomic import write_aside\n"
        "with write_aside(Path(sys.argv[1])) as out:\n"
        "    out.write(b'half'); out.flush(); os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "out.jsonl"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "other.jsonl")], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    export_results(ROWS, "jsonl", path, vector_output=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert path.exists()


def test_two_live_writers_of_one_file_do_not_take_each_others_work(tmp_path: Path) -> None:
    """Two schedulers may deliver the same output for a moment; both must succeed."""
    path = tmp_path / "out.jsonl"

    def rows_with_another_export() -> Iterator[Result]:
        yield ROWS[0]
        export_results(ROWS[:1], "jsonl", path, vector_output=False)
        yield ROWS[2]

    assert export_results(rows_with_another_export(), "jsonl", path, vector_output=False) == 2
    assert path.read_bytes().count(b"\n") == 2
    assert list(tmp_path.iterdir()) == [path]
