"""The protocol of a source: it lists columns, splits rows into chunks and reads any range of rows again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.data.rows import Row


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """A contiguous range of rows [start_row, stop_row) of one file, and the place where reading can start."""

    start_row: int
    stop_row: int
    locator: dict[str, Any]
    """The JSON values that `Source.read` needs: the file, its size and stamp, a place in it and, as `row`, the index of
    the row at that place. If a chunk is split in two, both halves keep its locator."""


class Source(Protocol):
    """The input of one job: its columns, its chunks and its rows."""

    def column_names(self) -> list[str]:
        """The user's columns, from the beginning of the first file that has rows.

        Raises:
            InvalidInput: The input is missing, empty, unreadable or not in the expected format.
            Forbidden: Jobs may not read the input's location.
        """
        ...

    def class_names(self, column: str) -> list[str] | None:
        """The class names of a column, indexed by class id; None if the first file does not store class names.

        Raises:
            InvalidInput: See `column_names`.
            Forbidden: See `column_names`.
        """
        ...

    def columns_by_file(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the name and the columns of each file that has rows or a header, one file at a time.

        Raises:
            InvalidInput, Forbidden: See `column_names`.
        """
        ...

    def index(self, chunk_rows: int) -> Iterator[ChunkRange]:
        """Count the rows and cut them into chunks, lazily and in bounded memory.

        Args:
            chunk_rows: Maximum number of rows in a chunk; the last chunk of a file may have fewer.

        Returns:
            Consecutive ranges from row 0 without gaps. The same files always give the same ranges.

        Raises:
            InvalidInput: See `column_names`; also if there are no rows, or a file changed meanwhile.
            Forbidden: See `column_names`.
        """
        ...

    def read(self, start_row: int, stop_row: int, locator: dict[str, Any]) -> Iterator[Row]:
        """Read rows [start_row, stop_row) again, in order; a bad row has its `error` set.

        Args:
            start_row: First row, at or after the first row of the locator's chunk.
            stop_row: One past the last row, within that chunk.
            locator: The locator of the `ChunkRange` that holds the rows.

        Returns:
            Exactly `stop_row - start_row` rows.

        Raises:
            InvalidInput: The file was removed or changed after it was indexed.
            ServiceUnavailable: A remote file cannot be reached now.
        """
        ...
