"""Read CSV and similar files by byte offsets, with any one-character delimiter, quoted or not.

Empty lines are skipped. An empty cell is an empty string, never null.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from jobs.data.rows import RowError, RowErrorCode
from jobs.data.sources import open_file
from jobs.data.sources.formats import block_scan
from jobs.data.sources.formats.encodings import PARAM as ENCODING_PARAM
from jobs.data.sources.formats.encodings import convert_command, text_encoding
from jobs.data.sources.formats.quotes import CellsInQuotes, Dialect, Quoted, Unquoted, enclosed, swallowed_lines
from jobs.data.sources.formats.texts import check_encoding, data_start, row_text, too_large, wrong_encoding
from jobs.data.sources.reader import Cut, InputFile, Record
from jobs.errors import InvalidInput
from jobs.messages import short
from jobs.specs.fields import TextFields

_CANDIDATES = ",;\t|"
_SNIFF_BYTES = 64 * 2**10
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_SHOWN_CHARACTERS = 60
_QUOTING_PARAM = "input.quoting"
_TAB_ENDINGS = (".tsv", ".tab")
_UNQUOTED = "unquoted"
"""Key in a chunk's place: the file is read without quotes only because of its name."""


@dataclass(frozen=True, slots=True)
class Header:
    """Properties of a file, read from its first record."""

    dialect: Dialect
    is_guess: bool
    """Whether only the file's name suggests that it has no quotes."""
    names: list[str]
    offset: int
    """Byte offset from which the first row is read."""
    line: int


class DelimitedReader:
    """Reads `.csv` and `.tsv` files that have a header line, with LF or CRLF, with or without a byte order mark.

    A `.tsv` file is read without quotes, as IANA defines text/tab-separated-values, unless its header line is quoted.
    If cells of such a file are enclosed in quotes, it is rejected, because the quotes could be text or not.
    """

    def __init__(self, fields: TextFields, *, max_row_bytes: int) -> None:
        """
        Args:
            fields: The spec's delimiter, quoting, escape character and encoding.
            max_row_bytes: Maximum size of a record without its line ending; a longer one is a row error.

        Raises:
            InvalidInput: One of the options is invalid, or two of them conflict.
        """
        self._fields = fields
        self._encoding = text_encoding(fields.encoding)
        self._max_row_bytes = max_row_bytes
        self._known: tuple[InputFile, Header] | None = None
        _check_marks({name: getattr(fields, name) for name in ("quotechar", "escapechar", "delimiter")})
        if csv.field_size_limit() < max_row_bytes:  # the csv module has one limit per process, by default 128 KiB
            csv.field_size_limit(max_row_bytes)

    def stamped(self, file: InputFile) -> InputFile:
        """Return the file with its current size and stamp."""
        return open_file.stamped(file)

    def column_names(self, file: InputFile) -> list[str] | None:
        """The cells of the header line; None if the file is empty.

        Raises:
            InvalidInput: The file has no header line, or has another encoding.
        """
        with open_file.opened(file) as handle:
            header = self._header(handle, file)
            if header is None:
                return None
            check_encoding(self._texts(handle, header, header.offset, header.line), file, self._encoding)
        return header.names

    def cut(self, file: InputFile, chunk_rows: int) -> Iterator[Cut]:
        """Count records block by block and split them into chunks."""
        with open_file.opened(file) as handle:
            header = self._header(handle, file)
            if header is None:
                return
            splitter = Unquoted(header.dialect) if header.is_guess else Quoted(header.dialect)
            places = {_UNQUOTED: 1} if header.is_guess else {}
            cuts = block_scan.cut_rows(handle, file, splitter, chunk_rows, offset=header.offset, line=header.line)
            try:
                for cut in cuts:
                    yield cut._replace(place={**cut.place, **places})
            except CellsInQuotes as found:
                raise InvalidInput(
                    f"{_QUOTING_PARAM}: line {header.line + found.line} of '{file.name}' has a cell in quotes; "
                    "set it to none if quotes are plain text in this file, or to minimal if they enclose cells",
                    param=_QUOTING_PARAM,
                ) from found

    def records(self, file: InputFile, place: Mapping[str, Any], skip: int, count: int) -> Iterator[Record]:
        """Parse the records at `place`."""
        with open_file.opened(file) as handle:
            header = self._header(handle, file, is_planned=True, is_unquoted=_UNQUOTED in place)
            if header is None:
                return
            for text in self._texts(handle, header, place["offset"], place["line"], skip, count):
                yield Record(self._parse(text, header), text.line)

    def _texts(
        self, handle: BinaryIO, header: Header, offset: int, line: int, skip: int = 0, count: int = 2**62
    ) -> Iterator[block_scan.Text]:
        splitter, limit = Quoted(header.dialect), self._max_row_bytes
        return block_scan.read_rows(handle, splitter, offset=offset, line=line, skip=skip, count=count, max_bytes=limit)

    def _parse(self, text: block_scan.Text, header: Header) -> Mapping[str, Any] | RowError:
        if text.data is None:
            return too_large(text.line, self._max_row_bytes)
        row = row_text(text.data, text.line, self._encoding)
        if isinstance(row, RowError):
            return row
        try:
            cells = header.dialect.cells(row)
        except csv.Error as error:
            return self._fault(f"the row is not valid CSV: {error}", text, header)
        if len(cells) != len(header.names):
            reason = f"the row has {len(cells)} cells, but the header has {len(header.names)}"
            return self._fault(reason, text, header)
        return dict(zip(header.names, cells, strict=True))

    def _fault(self, reason: str, text: block_scan.Text, header: Header) -> RowError:
        """The row error of a record, with its most likely cause."""
        assert text.data is not None
        dialect = header.dialect
        swallowed = swallowed_lines(text.data, dialect)
        advice = ""
        if swallowed is not None:
            advice = f"; the quote that opens on line {text.line + swallowed.line} swallows {swallowed}"
        if (
            dialect.quotechar is not None
            and dialect.escapechar is None
            and rf"\{dialect.quotechar}".encode() in text.data
        ):
            advice += "; if quotes are escaped by a backslash in this file, set input.escapechar to '\\'"
        elif swallowed is not None:
            advice += "; if quotes are plain text in this file, set input.quoting to none"
        elif header.is_guess and b'"' in text.data:
            advice += "; if quotes enclose cells in this file, set input.quoting to minimal"
        return RowError(RowErrorCode.INVALID_CSV_ROW, reason + advice, text.line)

    def _header(
        self, handle: BinaryIO, file: InputFile, *, is_planned: bool = False, is_unquoted: bool = False
    ) -> Header | None:
        """The file's header; for a planned file, with the quoting that was used when it was planned."""
        if self._known is None or self._known[0] != file or not file.stamp:
            header = self._read_header(handle, file, is_planned=is_planned, is_unquoted=is_unquoted)
            if header is None:
                return None
            self._known = (file, header)
        return self._known[1]

    def _read_header(self, handle: BinaryIO, file: InputFile, *, is_planned: bool, is_unquoted: bool) -> Header | None:
        start = data_start(handle, file)
        fields, limit = self._fields, self._max_row_bytes
        delimiter = fields.delimiter or self._sniffed(handle, file, start)
        is_guess = is_unquoted if is_planned else self._has_no_quotes(handle, file, start, delimiter)
        quotechar = None if is_guess or fields.quoting == "none" else fields.quotechar
        dialect = Dialect(delimiter, quotechar, fields.escapechar)
        self._check_shared(dialect)
        texts = block_scan.read_rows(handle, Quoted(dialect), offset=start, line=1, skip=0, count=2, max_bytes=limit)
        first = next(texts, None)
        if first is None:
            return None
        if first.data is None:
            raise _no_header(file, f"its first line is longer than {limit} bytes")
        text = row_text(first.data, first.line, self._encoding)
        if isinstance(text, RowError):
            raise wrong_encoding(file, self._encoding, first.line)
        try:
            names = dialect.cells(text)
        except csv.Error as error:
            cause = "its lines end with CR only; save it with LF" if b"\r" in first.data else str(error)
            raise _no_header(file, cause) from error
        if all(not name.strip() or _NUMBER.fullmatch(name) for name in names):
            raise _no_header(file, f"its first line is '{short(text, _SHOWN_CHARACTERS)}'")
        second = next(texts, None)
        if second is None:
            end = file.size if file.size >= 0 else handle.seek(0, 2)
            return Header(dialect, is_guess, names, end, first.line)
        return Header(dialect, is_guess, names, second.offset, second.line)

    def _has_no_quotes(self, handle: BinaryIO, file: InputFile, start: int, delimiter: str) -> bool:
        """Whether a file has no quotes according to its name and header, if the spec does not say so."""
        if self._fields.quoting != "auto" or not file.name.lower().endswith(_TAB_ENDINGS):
            return False
        handle.seek(start)
        first_line = handle.read(_SNIFF_BYTES).lstrip(b"\r\n").partition(b"\n")[0]
        return enclosed(delimiter).search(b"\n" + first_line + b"\n") is None

    def _check_shared(self, dialect: Dialect) -> None:
        """Reject a special character whose byte is also part of other characters in the encoding."""
        for name in ("delimiter", "quotechar", "escapechar"):
            mark = getattr(dialect, name)
            if mark is not None and ord(mark) in self._encoding.shared:
                param = ENCODING_PARAM if name == "delimiter" and self._fields.delimiter is None else f"input.{name}"
                raise InvalidInput(
                    f"{param}: the byte of {mark!r} is also part of other characters in {self._encoding.name}; "
                    f"convert the file first: {convert_command(self._encoding.name)}",
                    param=param,
                )

    def _sniffed(self, handle: BinaryIO, file: InputFile, start: int) -> str:
        if file.name.lower().endswith(_TAB_ENDINGS):
            return "\t"
        handle.seek(start)
        head = handle.read(_SNIFF_BYTES).decode(self._encoding.name, errors="replace").lstrip("\r\n")
        if self._fields.quoting != "none":
            quote = re.escape(self._fields.quotechar)
            head = re.sub(f"{quote}(?:[^{quote}]|{quote}{quote})*{quote}", "", head)
        first_line = head.partition("\n")[0]
        return max(_CANDIDATES, key=first_line.count)  # the first candidate wins a tie


def _check_marks(marks: Mapping[str, str | None]) -> None:
    seen: dict[str, str] = {}
    for name, mark in marks.items():
        if mark is None:
            continue
        param = f"input.{name}"
        if not mark.isascii() or mark in "\r\n\0":
            raise InvalidInput(f"{param}: must be one ASCII character other than a line break", param=param)
        if mark in seen:
            raise InvalidInput(f"{param}: is {mark!r}, the same as input.{seen[mark]}; they must differ", param=param)
        seen[mark] = name


def _no_header(file: InputFile, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{open_file.PARAM}: '{file.name}' has no header line that names its columns: {reason}", param=open_file.PARAM
    )
