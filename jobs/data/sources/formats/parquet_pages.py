"""Read the unpacked sizes of a Parquet file's pages from the page headers, which pyarrow trusts over the footer.

A header is a Thrift struct in the compact protocol, https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md,
whose first three fields are the page's type, its unpacked size and its size in the file:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from jobs.data.sources.reader import LARGE_BYTES, is_bomb
from jobs.messages import counted

_DICTIONARY = 2
"""Page type of a dictionary."""
_WITH_VALUES = (5, 8)
"""Header fields that describe a column's values, for the two kinds of data pages."""
_VALUE_BYTES = 8
"""Minimum memory in bytes of a decoded value, for its levels and its offset."""
_HEADER_BYTES = 512
_LONGEST_HEADER_BYTES = 16 * 2**20  # Arrow's limit; a header holds the page's smallest and largest value
_DEEPEST_STRUCT = 8


@dataclass(frozen=True, slots=True)
class Page:
    """Properties of a page, read from its header."""

    is_dictionary: bool
    unpacked_bytes: int
    packed_bytes: int
    header_bytes: int
    num_values: int


class _Header:
    """Reads a struct of Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct's integers and inner structs by their field ids; other fields are skipped.

        Raises:
            IndexError: The struct continues after the end of the data.
            ValueError: The data is not a struct.
        """
        if depth > _DEEPEST_STRUCT:
            raise ValueError("has a page whose header is nested too deeply")
        found: dict[int, Any] = {}
        field = 0
        while (mark := self._byte()) != 0:
            field = field + (mark >> 4) if mark >> 4 else self._number()
            value = self._value(mark & 15, depth)
            if value is not None:
                found[field] = value
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in {1, 2}:  # a boolean, whose kind is its value
            return None
        if kind == 3:
            return self._byte()
        if kind in {4, 5, 6}:
            return self._number()
        if kind in {7, 8}:
            self._skip(8 if kind == 7 else self._varint())
        elif kind in {9, 10}:
            mark = self._byte()
            for _ in range(self._varint() if mark >> 4 == 15 else mark >> 4):
                if mark & 15 in {1, 2}:
                    self._byte()
                else:
                    self._value(mark & 15, depth)
        elif kind == 12:
            return self.struct(depth + 1)
        else:
            raise ValueError(f"has a page whose header has a field of the unknown kind {kind}")
        return None

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("has a page whose header has an invalid number")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, num_bytes: int) -> None:
        self.at += num_bytes
        if self.at > len(self._data):
            raise IndexError("the struct continues after the data")


def pages(handle: BinaryIO, chunk: Any) -> Iterator[Page]:
    """Yield the pages of a column in one row group, from their headers only.

    Args:
        handle: The file.
        chunk: Pyarrow's metadata of the column in the row group.

    Raises:
        ValueError: A header cannot be read.
    """
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
    while at < end:
        page = _page(handle, at)
        yield page
        at += page.header_bytes + page.packed_bytes


def _page(handle: BinaryIO, at: int) -> Page:
    size = _HEADER_BYTES
    while True:
        handle.seek(max(at, 0))
        data = handle.read(size)
        header = _Header(data)
        try:
            fields = header.struct()
        except IndexError as error:
            if len(data) < size or size >= _LONGEST_HEADER_BYTES:
                raise ValueError("has a page whose header does not end") from error
            size *= 8
            continue
        unpacked, packed = fields.get(2, -1), fields.get(3, -1)
        if unpacked < 0 or packed < 0:
            raise ValueError("has a page whose header has no sizes")
        num_values = max(
            (fields[kind].get(1, 0) for kind in _WITH_VALUES if isinstance(fields.get(kind), dict)), default=0
        )
        return Page(fields.get(1) == _DICTIONARY, unpacked, packed, header.at, num_values)


@dataclass(frozen=True, slots=True)
class Dictionary:
    """The dictionary of a column in a row group."""

    path: str
    """The column's path in the schema."""
    num_bytes: int
    """Unpacked size in bytes; no value is longer than that."""
    num_values: int
    """Number of the column's values in the row group."""


def dictionaries(
    handle: BinaryIO, facts: Any, columns: Collection[str] | None, max_row_bytes: int, *, is_remote: bool = False
) -> list[Dictionary]:
    """Check the pages of a row group before any page is unpacked.

    Args:
        handle: The file.
        facts: Pyarrow's metadata of the row group.
        columns: Top-level columns that will be read; None for all.
        max_row_bytes: Maximum size of a value; a larger one is a row error.
        is_remote: Whether to check only the first page of each column, because each read of a remote file is a request.

    Returns:
        The dictionaries of the row group's columns.

    Raises:
        ValueError: A page or a column expands too much, or a header cannot be read. The message is worded to follow
            the file's name.
    """
    found: list[Dictionary] = []
    for number in range(facts.num_columns):
        chunk = facts.column(number)
        name = chunk.path_in_schema.split(".")[0]
        if columns is not None and name not in columns:
            continue
        total = 0
        for page in pages(handle, chunk):
            size = page.unpacked_bytes
            if is_bomb(page.packed_bytes, size):
                raise ValueError(f"has a page of column '{name}' that expands from {page.packed_bytes} bytes to {size}")
            total += max(size, page.num_values * _VALUE_BYTES)
            fault = column_fault(name, total, facts.num_rows, max_row_bytes)
            if fault is not None:
                raise ValueError(fault)
            if page.is_dictionary and chunk.physical_type == "BYTE_ARRAY":
                found.append(Dictionary(chunk.path_in_schema, size, chunk.num_values))
            if is_remote:
                break
    return found


def column_fault(name: str, num_bytes: int, num_rows: int, max_row_bytes: int) -> str | None:
    """The reason why a column that unpacks to `num_bytes` in a row group is rejected; None if it is not."""
    if num_bytes <= LARGE_BYTES or num_bytes <= max_row_bytes * num_rows:
        return None
    return (
        f"has a row group of {counted(num_rows, 'row')} in which column '{name}' expands to {num_bytes} bytes, "
        f"more than {max_row_bytes} bytes for each row (setting max_row_bytes)"
    )


def repeated_bytes(column: pa.Array) -> int:
    """Size in bytes of a column's values if its dictionaries are decoded."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(column.dictionary)
        return pc.sum(pc.take(pc.cast(lengths, pa.int64()), column.indices)).as_py() or 0
    if pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        parts = column.flatten()
        return sum(map(repeated_bytes, parts if isinstance(parts, list) else [parts]))
    if pa.types.is_map(kind):
        first, last = column.offsets[0].as_py(), column.offsets[-1].as_py()
        return sum(repeated_bytes(each.slice(first, last - first)) for each in (column.keys, column.items))
    return 0
