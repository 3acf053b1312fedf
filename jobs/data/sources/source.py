"""What a source is: it names its columns, cuts its rows into chunks and reads any range of rows again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.data.rows import Row


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """A contiguous range of rows [start_row, stop_row) of one file, and where reading it may begin."""

    start_row: int
    stop_row: int
    locator: dict[str, Any]
    """JSON values that `Source.read` needs and nothing more: the file, its size and stamp, a place in it and under
    `row` the index of the row found there. A chunk that is cut in two keeps its locator in both halves."""


class Source(Protocol):
    """Where the rows of a job come from."""

    def column_names(self) -> list[str]:
        """The user's columns, found in the head of the first file that has rows.

        Raises:
            InvalidInput: the input is missing, empty, unreadable or not of its format.
            Forbidden: the input lies where jobs may not read.
        """
        ...

    def class_names(self, column: str) -> list[str] | None:
        """The names of a column's classes by their ids, where the rows hold ids and the first file the names.

        Raises:
            InvalidInput: as in `column_names`.
            Forbidden: as in `column_names`.
        """
        ...

    def columns_by_file(self) -> Iterator[tuple[str, list[str]]]:
        """The name of each file that has rows or a header, and its columns as its head shows them; file after file.

        Raises:
            InvalidInput, Forbidden: as in `column_names`.
        """
        ...

    def index(self, chunk_rows: int) -> Iterator[ChunkRange]:
        """Count the rows and cut them into chunks, lazily and in bounded memory.

        Args:
            chunk_rows: the most rows in one chunk; the last chunk of a file has fewer.

        Returns:
            Ranges that follow each other from row 0 without a gap; the same for the same files.

        Raises:
            InvalidInput: as in `column_names`, or there are no rows, or a file changed meanwhile.
            Forbidden: as in `column_names`.
        """
        ...

    def read(self, start_row: int, stop_row: int, locator: dict[str, Any]) -> Iterator[Row]:
        """Read rows [start_row, stop_row) again, in order; a bad row has its `error` set.

        Args:
            start_row: first row, at or after the first row of the chunk that `locator` came with.
            stop_row: one past the last row, within that chunk.
            locator: of the `ChunkRange` that holds the rows.

        Returns:
            Exactly `stop_row - start_row` rows.

        Raises:
            InvalidInput: the file is gone or changed after it was indexed.
            ServiceUnavailable: a remote file cannot be reached now.
        """
        ...
