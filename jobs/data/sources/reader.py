"""What one file format implements; everything that formats share sits in `inputs.InputSource`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jobs.data.rows import RowError

LARGE_BYTES = 64 * 2**20
"""What is unpacked at once may take this much whatever its size in the file is."""
_MOST_EXPANSION = 100
"""What takes more unpacks to at most so many times its size in the file."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file (or data set) of an input."""

    url: str
    """Absolute local path, or a URL that fsspec opens."""
    name: str
    """What the user called it; for messages."""
    format: str
    """`jsonl`, `json`, `csv`, `text`, `parquet` or `dataset`."""
    size: int = -1
    """Bytes (of a data set: rows) when it was planned; -1 before."""
    stamp: str = ""
    """Changes with the content: `stamps.file_stamp`, an ETag, or a data set's fingerprint; empty before planning."""
    is_upload: bool = False
    """Whether it lies in the artifact store, outside the input roots."""


class Record(NamedTuple):
    """What the format found at one row: the user's columns, or why there are none."""

    values: Mapping[str, Any] | RowError
    """A RowError in the place of one column's value is the error of rows that use that column."""
    line: int | None
    """1-based physical line, where the format has lines."""


class Cut(NamedTuple):
    """One chunk of one file; rows are counted from the file's first row."""

    start: int
    stop: int
    row: int
    """The row that is found at `place`; at or before `start`."""
    place: dict[str, int]
    """Where reading begins, in the format's own words."""


class Reader(Protocol):
    """Reads one format."""

    def stamped(self, file: InputFile) -> InputFile:
        """The same file with its present size and stamp."""
        ...

    def column_names(self, file: InputFile) -> list[str] | None:
        """The columns that the head of the file shows; None where the file is empty."""
        ...

    def cut(self, file: InputFile, chunk_rows: int) -> Iterator[Cut]:
        """Cut the whole file into chunks that follow each other; nothing where the file has no rows."""
        ...

    def records(self, file: InputFile, place: Mapping[str, Any], skip: int, count: int) -> Iterator[Record]:
        """The `count` records after the first `skip` ones at `place`; fewer only where the file ends before."""
        ...


def is_bomb(packed_bytes: int, unpacked_bytes: int) -> bool:
    """Whether a part of a file, which is unpacked at once, is large and expands beyond what real data does."""
    return unpacked_bytes > LARGE_BYTES and unpacked_bytes > _MOST_EXPANSION * packed_bytes


def changed_message(file: InputFile) -> str:
    """What the user is told when the content is not the planned one any more."""
    return f"input.path: '{file.name}' changed after the job was submitted"
