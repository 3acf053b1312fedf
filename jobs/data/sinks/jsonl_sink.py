"""Result files in the JSON Lines format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import BinaryIO

from jobs.data.rows import Result
from jobs.data.sinks.lines import parse_line, result_line
from jobs.data.sinks.protocol import Output

_BLOCK_BYTES = 2**20


class JsonLines:
    """Writes one line for each result: `{"row_index":0,"key":"r0","output":...,"error":null}`."""

    suffix = ".jsonl"

    def __init__(self, *, vector_output: bool) -> None:
        """
        Args:
            vector_output: Whether an output is one float32 vector, written as a JSON array of numbers.
        """
        self._vector_output = vector_output

    @contextmanager
    def writer(self, out: Output) -> Iterator[_LineWriter]:
        """See `PartFormat.writer`."""
        yield _LineWriter(out, vector_output=self._vector_output)

    def read(self, part: BinaryIO, *, skip: int = 0) -> Iterator[Result]:
        """See `PartFormat.read`."""
        for line in islice(part, skip, None):
            yield parse_line(line, vector_output=self._vector_output)


class _LineWriter:
    def __init__(self, out: Output, *, vector_output: bool) -> None:
        self._out = out
        self._vector_output = vector_output

    def add(self, results: Iterable[Result]) -> int:
        num_rows = 0
        for result in results:
            self._out.write(result_line(result, vector_output=self._vector_output))
            num_rows += 1
        return num_rows

    def append(self, part: BinaryIO) -> int:
        num_rows = 0
        while block := part.read(_BLOCK_BYTES):
            num_rows += block.count(b"\n")
            self._out.write(block)
        return num_rows
