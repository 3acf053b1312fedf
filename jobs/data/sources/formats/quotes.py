"""Find the records of CSV and similar files, with quoted newlines, doubled quotes, escape characters or no quotes.

As in Python's csv module, a newline ends a record unless it is in a quoted field or after an escape character, and a
quote opens a quoted field only at the beginning of the field.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.data.sources.formats.block_scan import Escapes, Positions

_NEWLINE = 10
_LINE_ENDS = re.compile(r"(?<=\n)")
_MOST_HELD_BYTES = 64 * 2**10  # the maximum part of a cell that is kept for the next block


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the cells of a file are separated and quoted; all characters are ASCII."""

    delimiter: str
    quotechar: str | None = '"'
    """The quote character; None if quotes are text."""
    escapechar: str | None = None

    def cells(self, text: str) -> list[str]:
        """Parse one record to its cells.

        Raises:
            csv.Error: The record is invalid.
        """
        options: dict[str, Any] = {"delimiter": self.delimiter, "escapechar": self.escapechar, "strict": True}
        if self.quotechar is None:
            options["quoting"] = csv.QUOTE_NONE
        else:
            options["quotechar"] = self.quotechar
        lines = [text]
        # the csv module accepts an escaped newline only at the end of a line
        if self.escapechar is not None and "\n" in text:
            lines = _LINE_ENDS.split(text + "\n")[:-1]
        records = list(csv.reader(lines, **options))
        if len(records) != 1:
            raise csv.Error("a line ends within the row")
        return records[0]


class Quoted:
    """Splits at newlines outside quotes. Empty lines are not rows."""

    blank = b"\r\n"

    def __init__(self, dialect: Dialect) -> None:
        """
        Args:
            dialect: The file's delimiter, quote and escape characters.
        """
        self._quote = -1 if dialect.quotechar is None else ord(dialect.quotechar)
        self._escapes = Escapes(dialect.escapechar)
        self._opens_after = np.zeros(256, dtype=bool)
        self._opens_after[[ord(dialect.delimiter), _NEWLINE]] = True
        self._in_quotes = False
        self._closed_last = False  # whether the byte before this block is a quote that closed a field
        self._last_byte = _NEWLINE
        self._num_newlines = 0
        self._opened_after = 0
        """Number of newlines before the quote that is open at the end of the block."""

    def endings(self, block: NDArray[np.uint8], newlines: Positions) -> Positions | None:
        """The newlines that are not escaped and come after an even number of effective quotes."""
        is_escaped = self._escapes.mask(block)
        was_in_quotes = self._in_quotes
        quotes = self.effective_quotes(block, is_escaped)
        ends = newlines if is_escaped is None else newlines[~is_escaped[newlines]]
        if quotes.size:
            ends = ends[(np.searchsorted(quotes, ends) + was_in_quotes) % 2 == 0]
            if self._in_quotes:
                self._opened_after = self._num_newlines + int(np.searchsorted(newlines, quotes[-1]))
        elif was_in_quotes:
            ends = ends[:0]
        self._num_newlines += newlines.size
        return None if ends.size == newlines.size else ends

    def fault(self, line: int) -> str | None:
        """A message if a quote is never closed and swallows whole lines; in the last line, it is only a row error."""
        num_swallowed = self._num_newlines - (self._last_byte == _NEWLINE) - self._opened_after
        if not self._in_quotes or num_swallowed < 1:
            return None
        return (
            f"the quote that opens on line {line + self._opened_after} is never closed and swallows "
            f"{_lines(num_swallowed)}; close it, or set input.quoting to none if quotes are plain text in this file"
        )

    def effective_quotes(self, block: NDArray[np.uint8], is_escaped: NDArray[np.bool_] | None) -> Positions:
        """Indices of the quotes that open or close a field. Blocks must be passed in file order."""
        quotes = np.flatnonzero(block == self._quote) if self._quote >= 0 else np.empty(0, dtype=np.int64)
        if is_escaped is not None and quotes.size:
            quotes = quotes[~is_escaped[quotes]]
        if quotes.size:
            before = block[quotes - 1]
            if quotes[0] == 0:
                before[0] = self._last_byte
            opens = self._opens_after[before]
            if is_escaped is not None:  # no field begins after an escaped delimiter
                opens &= ~is_escaped[quotes - 1] | (quotes == 0)
            if not self._is_regular(quotes, opens):
                quotes = self._one_by_one(quotes, opens)
        self._in_quotes = bool((quotes.size + self._in_quotes) % 2)
        ends_with_quote = bool(quotes.size) and int(quotes[-1]) == block.size - 1
        self._closed_last = ends_with_quote and not self._in_quotes
        self._last_byte = 0 if is_escaped is not None and is_escaped[-1] else int(block[-1])
        return quotes

    def _is_regular(self, quotes: Positions, opens: NDArray[np.bool_]) -> bool:
        """Whether every quote outside quotes opens a field or follows a closing quote, so that parity alone decides."""
        first_opening = int(self._in_quotes)
        openings = quotes[first_opening::2]
        follows = np.zeros(openings.size, dtype=bool)
        if first_opening:
            follows[:] = quotes[0::2][: openings.size] == openings - 1
        else:
            follows[1:] = quotes[1::2][: openings.size - 1] == openings[1:] - 1
            follows[:1] = self._closed_last & (openings[:1] == 0)
        return bool((opens[first_opening::2] | follows).all())

    def _one_by_one(self, quotes: Positions, opens: NDArray[np.bool_]) -> Positions:
        """The quotes that open or close a field, found in a slow loop; other quotes are text within a field."""
        in_quotes = self._in_quotes
        closed_at = -1 if self._closed_last else -2
        effective: list[int] = []
        for at, begins_field in zip(quotes.tolist(), opens.tolist(), strict=True):
            if in_quotes:
                in_quotes, closed_at = False, at
            elif begins_field or at == closed_at + 1:
                in_quotes = True
            else:
                continue
            effective.append(at)
        return np.array(effective, dtype=np.int64)


class CellsInQuotes(Exception):
    """A cell is enclosed in quotes, in a file for which the spec does not say whether it has quotes."""

    def __init__(self, line: int) -> None:
        """
        Args:
            line: Number of newlines between the beginning of the scan and the cell.
        """
        super().__init__(line)
        self.line = line


class Unquoted(Quoted):
    """Splits at every newline. Raises `CellsInQuotes` if a cell is enclosed in quotes, because that is ambiguous."""

    def __init__(self, dialect: Dialect) -> None:
        """
        Args:
            dialect: The file's delimiter and escape characters, without a quote character.
        """
        super().__init__(dialect)
        self._delimiter = dialect.delimiter.encode()
        self._enclosed = enclosed(dialect.delimiter)
        self._held = b"\n"
        """The bytes from the last cell boundary on, including that boundary."""

    def endings(self, block: NDArray[np.uint8], newlines: Positions) -> Positions | None:
        """The newlines that are not escaped."""
        num_before = self._num_newlines - self._held.count(b"\n")
        text = self._held + block.tobytes()
        self._look(text, num_before)
        last = max(text.rfind(b"\n"), text.rfind(self._delimiter))
        opened = max(text.rfind(b'\n"'), text.rfind(self._delimiter + b'"'))
        if opened >= 0 and text.find(self._delimiter, opened + 1) < 0:  # that cell may span several lines
            last = opened
        self._held = text[last:] if len(text) - last <= _MOST_HELD_BYTES else b"\n."
        return super().endings(block, newlines)

    def fault(self, line: int) -> str | None:  # noqa: ARG002 - the exception carries the line
        """Check the last cell; returns None."""
        self._look(self._held + b"\n", self._num_newlines - self._held.count(b"\n"))
        return None

    def _look(self, text: bytes, num_before: int) -> None:
        if b'"' in text:
            found = self._enclosed.search(text)
            if found is not None:
                raise CellsInQuotes(num_before + text.count(b"\n", 0, found.start()))


def enclosed(delimiter: str) -> re.Pattern[bytes]:
    """A pattern for a cell enclosed in quotes: on one line, or with doubled quotes and newlines inside."""
    mark = re.escape(delimiter.encode())
    on_one_line, over_several = rb"[^\r\n%b]*" % mark, rb'(?:[^"%b]+|"")*' % mark
    return re.compile(rb'(?<=[\n%b])"(?:%b|%b)"(?=\r?\n|%b)' % (mark, on_one_line, over_several, mark))


class SwallowedLines(NamedTuple):
    """A quoted cell that spans several lines."""

    line: int
    """Number of newlines in the record before the cell's opening quote."""
    num_lines: int
    """Number of further lines that the cell spans."""

    def __str__(self) -> str:
        return _lines(self.num_lines)


def swallowed_lines(record: bytes, dialect: Dialect) -> SwallowedLines | None:
    """The first cell of a record that spans several lines; None if there is none."""
    block = np.frombuffer(record, np.uint8)
    newlines = np.flatnonzero(block == _NEWLINE)
    if not newlines.size:
        return None
    quotes = Quoted(dialect).effective_quotes(block, Escapes(dialect.escapechar).mask(block))
    before = np.searchsorted(newlines, np.append(quotes, block.size) if quotes.size % 2 else quotes)
    counts = before[1::2] - before[0::2]
    several = np.flatnonzero(counts)
    return SwallowedLines(int(before[0::2][several[0]]), int(counts[several[0]])) if several.size else None


def _lines(count: int) -> str:
    return "the line after it" if count == 1 else f"the {count} lines after it"
