"""Export results as JSONL, Parquet or CSV, and copy artifacts to a user's output path."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from jobs.data.atomic import write_aside
from jobs.data.rows import Result
from jobs.data.sinks.jsonl_sink import JsonLines
from jobs.data.sinks.lines import error_json, output_json, storable_text
from jobs.data.sinks.protocol import ResultWriter
from jobs.data.store import Store

_FORMULA = re.compile(r"[=+\-@\t\r\n\uff0b\uff0d\uff1d\uff20]")
"""Matches the beginning of a cell that spreadsheets evaluate as a formula (OWASP, "CSV Injection")."""
_PLAIN_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_QUOTED = re.compile(r'[,"\r\n]')
ExportFormat = Literal["jsonl", "parquet", "csv"]
_BLOCK_BYTES = 2**20


def deliver_output(path: Path, store: Store, key: str) -> None:
    """Copy a finished artifact to the user's output path atomically.

    Raises:
        InvalidOutput: No file can be written there.
        NotFound: The store does not have the object.
        ServiceUnavailable: The store cannot be reached, or the disk is full or failing.
    """
    with closing(store.open(key)) as artifact, write_aside(path) as out:
        shutil.copyfileobj(artifact, out, _BLOCK_BYTES)


def open_writer(fmt: ExportFormat, out: BinaryIO, *, vector_output: bool) -> AbstractContextManager[ResultWriter]:
    """Write results to `out`, which need not be seekable and stays open. The file is complete when the block ends.

    Args:
        fmt: `jsonl` writes result lines, `parquet` the columns row_index, key, output and error, and `csv` the same
            columns, with output and error as JSON text or empty. In CSV, keys that a spreadsheet would evaluate as
            formulas get an apostrophe in front.
        out: The file that is written.
        vector_output: Whether an output is one float32 vector.
    """
    match fmt:
        case "jsonl":
            return JsonLines(vector_output=vector_output).writer(out)
        case "csv":
            return _csv_writer(out)
        case "parquet":
            from jobs.data.sinks.parquet_sink import Parquet

            return Parquet(vector_output=vector_output).writer(out)


@contextmanager
def _csv_writer(out: BinaryIO) -> Iterator[ResultWriter]:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")
    yield _CsvWriter(text)
    text.flush()
    text.detach()  # otherwise the wrapper would close the caller's `out` when it is deleted


class _CsvWriter:
    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._text.write("row_index,key,output,error\n")

    def add(self, results: Iterable[Result]) -> int:
        num_rows = 0
        for result in results:
            key = "" if result.key is None else _no_formula(storable_text(result.key))
            output = "" if result.error is not None else output_json(result).decode()
            error = "" if result.error is None else error_json(result.error).decode()
            self._text.write(f"{result.row_index},{_cell(key)},{_cell(output)},{_cell(error)}\n")
            num_rows += 1
        return num_rows


def _cell(text: str) -> str:
    """Quote a cell as RFC 4180 says. Python's csv writer does not quote a carriage return, which would end the row."""
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def _no_formula(text: str) -> str:
    """Make a user's text a cell that no spreadsheet evaluates; outputs and errors are JSON, never a formula."""
    return f"'{text}" if _FORMULA.match(text) and not _PLAIN_NUMBER.fullmatch(text) else text
