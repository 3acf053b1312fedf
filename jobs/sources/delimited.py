"""Read CSV and its relatives by byte offsets: quoted newlines, doubled quotes, any one-character delimiter.

A newline ends a record unless it stands in a quoted field, and a quote opens a field only at the field's beginning,
as Python's csv module reads them. Empty lines are no rows; an empty cell is an empty string, never null.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jobs.errors import InvalidInput
from jobs.rows import RowError
from jobs.sources import opening, scanning
from jobs.sources.jsonl import data_start, invalid_utf8, too_large
from jobs.sources.reader import Cut, InputFile, Record

_QUOTE = 34
_CANDIDATES = ",;\t|"
_SNIFF_BYTES = 64 * 2**10
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_SHOWN_CHARACTERS = 60


class Quoted:
    """Newlines outside quotes end a record; empty lines are no rows."""

    blank = b"\r\n"

    def __init__(self, delimiter: str) -> None:
        """
        Args:
            delimiter: one ASCII character.
        """
        self._opens_after = np.zeros(256, dtype=bool)
        self._opens_after[[ord(delimiter), ord("\n")]] = True
        self._in_quotes = False
        self._closed_last = False  # the byte before this block is a quote that closed a field
        self._last_byte = ord("\n")

    def endings(self, block: NDArray[np.uint8], newlines: scanning.Positions) -> scanning.Positions | None:
        """Indices of the newlines that have an even number of effective quotes before them."""
        quotes = np.flatnonzero(block == _QUOTE)
        if quotes.size and not self._is_regular(block, quotes):
            quotes = self._effective(block, quotes)
        if not quotes.size:
            found = newlines[:0] if self._in_quotes else None
        else:
            is_outside = (np.searchsorted(quotes, newlines) + self._in_quotes) % 2 == 0
            found = np.flatnonzero(is_outside)
            self._in_quotes = bool((quotes.size + self._in_quotes) % 2)
        ends_with_quote = bool(quotes.size) and int(quotes[-1]) == block.size - 1
        self._closed_last = ends_with_quote and not self._in_quotes
        self._last_byte = int(block[-1])
        return found

    def _is_regular(self, block: NDArray[np.uint8], quotes: scanning.Positions) -> bool:
        """Whether every quote outside quotes begins a field or follows a closing one, so that parity alone decides."""
        first_opening = int(self._in_quotes)
        openings = quotes[first_opening::2]
        before = block[openings - 1]  # of position 0 it is the block's last byte, put right below
        if openings.size and openings[0] == 0:
            before[0] = self._last_byte
        follows = np.zeros(openings.size, dtype=bool)
        if first_opening:
            follows[:] = quotes[0::2][: openings.size] == openings - 1
        else:
            follows[1:] = quotes[1::2][: openings.size - 1] == openings[1:] - 1
            follows[:1] = self._closed_last & (openings[:1] == 0)
        return bool((self._opens_after[before] | follows).all())

    def _effective(self, block: NDArray[np.uint8], quotes: scanning.Positions) -> scanning.Positions:
        """The quotes that open or close a field, one by one; others stand inside a field and mean themselves."""
        in_quotes = self._in_quotes
        closed_at = -1 if self._closed_last else -2
        effective: list[int] = []
        before = block[quotes - 1]
        if quotes[0] == 0:
            before[0] = self._last_byte
        opens = self._opens_after[before].tolist()
        for at, begins_field in zip(quotes.tolist(), opens, strict=True):
            if in_quotes:
                in_quotes, closed_at = False, at
            elif begins_field or at == closed_at + 1:
                in_quotes = True
            else:
                continue
            effective.append(at)
        return np.array(effective, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Header:
    """What the first record of a file says."""

    delimiter: str
    names: list[str]
    offset: int
    """Where the first row may begin."""
    line: int


class DelimitedReader:
    """Reads `.csv` and `.tsv` files: UTF-8 with or without a byte order mark, LF or CRLF, with a header line."""

    def __init__(self, *, max_row_bytes: int, delimiter: str | None) -> None:
        """
        Args:
            max_row_bytes: longest record, without its ending; a longer one is a row error.
            delimiter: one ASCII character; None: found in each file's header line.

        Raises:
            InvalidInput: the delimiter cannot be one.
        """
        if delimiter is not None and (not delimiter.isascii() or delimiter in '"\r\n\0'):
            param = "input.delimiter"
            raise InvalidInput(f"{param}: must be one ASCII character, and neither a quote nor a line end", param=param)
        self._max_row_bytes = max_row_bytes
        self._delimiter = delimiter
        self._known: tuple[InputFile, Header] | None = None
        if csv.field_size_limit() < max_row_bytes:  # the module's limit of 128 KiB is one for the whole process
            csv.field_size_limit(max_row_bytes)

    def stamped(self, file: InputFile) -> InputFile:
        """The same file with its present size and stamp."""
        return opening.stamped(file)

    def column_names(self, file: InputFile) -> list[str] | None:
        """The cells of the header line.

        Raises:
            InvalidInput: the file has no header line.
        """
        with opening.opened(file) as handle:
            header = self._header(handle, file)
        return None if header is None else header.names

    def cut(self, file: InputFile, chunk_rows: int) -> Iterator[Cut]:
        """Count records block by block."""
        with opening.opened(file) as handle:
            header = self._header(handle, file)
            if header is not None:
                splitter = Quoted(header.delimiter)
                yield from scanning.cut_rows(handle, file, splitter, chunk_rows, offset=header.offset, line=header.line)

    def records(self, file: InputFile, place: Mapping[str, Any], skip: int, count: int) -> Iterator[Record]:
        """Parse the records at `place`."""
        with opening.opened(file) as handle:
            header = self._header(handle, file)
            if header is None:
                return
            texts = scanning.read_rows(
                handle,
                Quoted(header.delimiter),
                offset=place["offset"],
                line=place["line"],
                skip=skip,
                count=count,
                max_bytes=self._max_row_bytes,
            )
            for text in texts:
                yield Record(self._parse(text, header), text.line)

    def _parse(self, text: scanning.Text, header: Header) -> Mapping[str, Any] | RowError:
        if text.data is None:
            return too_large(text.line, self._max_row_bytes)
        problem = invalid_utf8(text.data, text.line)
        if problem is not None:
            return problem
        try:
            cells = _cells(text.data.decode(), header.delimiter)
        except csv.Error as error:
            return RowError("invalid_csv_row", f"the row is not valid CSV: {error}", text.line)
        if len(cells) != len(header.names):
            return RowError(
                "invalid_csv_row",
                f"the row has {len(cells)} cells where the header has {len(header.names)}",
                text.line,
            )
        return dict(zip(header.names, cells, strict=True))

    def _header(self, handle: BinaryIO, file: InputFile) -> Header | None:
        if self._known is None or self._known[0] != file or not file.stamp:
            header = self._read_header(handle, file)
            if header is None:
                return None
            self._known = (file, header)
        return self._known[1]

    def _read_header(self, handle: BinaryIO, file: InputFile) -> Header | None:
        start = data_start(handle, file)
        delimiter = self._delimiter or self._sniffed(handle, file, start)
        limit = self._max_row_bytes
        texts = scanning.read_rows(handle, Quoted(delimiter), offset=start, line=1, skip=0, count=2, max_bytes=limit)
        first = next(texts, None)
        if first is None:
            return None
        if first.data is None:
            raise _no_header(file, f"its first line is longer than {limit} bytes")
        try:
            names = _cells(first.data.decode(), delimiter)
        except (csv.Error, UnicodeDecodeError) as error:
            cause = "it ends its lines with CR alone, save it with LF" if b"\r" in first.data else str(error)
            raise _no_header(file, cause) from error
        if all(not name.strip() or _NUMBER.fullmatch(name) for name in names):
            shown = first.data.decode()[:_SHOWN_CHARACTERS]
            raise _no_header(file, f"its first line is '{shown}'")
        second = next(texts, None)
        if second is None:
            end = file.size if file.size >= 0 else handle.seek(0, 2)
            return Header(delimiter, names, end, first.line)
        return Header(delimiter, names, second.offset, second.line)

    def _sniffed(self, handle: BinaryIO, file: InputFile, start: int) -> str:
        if file.name.lower().endswith((".tsv", ".tab")):
            return "\t"
        handle.seek(start)
        head = handle.read(_SNIFF_BYTES).decode(errors="replace").lstrip("\r\n")
        first_line = re.sub(r'"(?:[^"]|"")*"', "", head).partition("\n")[0]
        return max(_CANDIDATES, key=first_line.count)  # the earlier one where several are as frequent


def _cells(text: str, delimiter: str) -> list[str]:
    return next(csv.reader([text], delimiter=delimiter, strict=True))


def _no_header(file: InputFile, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{opening.PARAM}: '{file.name}' has no header line that names its columns: {reason}", param=opening.PARAM
    )
