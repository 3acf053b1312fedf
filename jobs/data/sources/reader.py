"""The protocol of a file format's reader; `inputs.InputSource` holds what all formats share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jobs.data.rows import RowError

LARGE_BYTES = 64 * 2**20
"""Data that is unpacked in one step may always take this many bytes, whatever its size in the file."""
_MOST_EXPANSION = 100
"""Data that takes more bytes than that may unpack to at most this multiple of its size in the file."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file (or data set) of an input."""

    url: str
    """Absolute local path, or a URL that fsspec opens."""
    name: str
    """The user's name of the file, for messages."""
    format: str
    """`jsonl`, `json`, `csv`, `text`, `parquet` or `dataset`."""
    size: int = -1
    """Size in bytes (for a data set, its number of rows) when the job was planned; -1 before planning."""
    stamp: str = ""
    """A value that changes with the content: `stamps.file_stamp`, an ETag, or a data set's fingerprint; empty before
    planning."""
    is_upload: bool = False
    """Whether the file is in the artifact store, outside the input roots."""


class Record(NamedTuple):
    """One row as the format's reader parsed it: the user's columns, or the reason why there are none."""

    values: Mapping[str, Any] | RowError
    """The values by column. A RowError as the value of a column fails the row only if the job uses that column."""
    line: int | None
    """1-based physical line; None if the format has no lines."""


class Cut(NamedTuple):
    """One chunk of one file; rows are counted from the file's first row."""

    start: int
    stop: int
    row: int
    """The row at `place`, which is `start` or an earlier row."""
    place: dict[str, int]
    """The place where reading begins; its keys depend on the format."""


class Reader(Protocol):
    """Reads one format."""

    def stamped(self, file: InputFile) -> InputFile:
        """Return the file with its current size and stamp."""
        ...

    def column_names(self, file: InputFile) -> list[str] | None:
        """The columns, from the beginning of the file; None if the file is empty."""
        ...

    def cut(self, file: InputFile, chunk_rows: int) -> Iterator[Cut]:
        """Split the whole file into consecutive chunks; yield nothing if the file has no rows."""
        ...

    def records(self, file: InputFile, place: Mapping[str, Any], skip: int, count: int) -> Iterator[Record]:
        """Skip `skip` records from `place` on and yield the next `count`; fewer only if the file ends before."""
        ...


def is_bomb(packed_bytes: int, unpacked_bytes: int) -> bool:
    """Whether a part of a file that is unpacked in one step is large and expands more than real data does."""
    return unpacked_bytes > LARGE_BYTES and unpacked_bytes > _MOST_EXPANSION * packed_bytes


def changed_message(file: InputFile) -> str:
    """The error message for a file whose content changed after the job was planned."""
    return f"input.path: '{file.name}' changed after the job was submitted"
