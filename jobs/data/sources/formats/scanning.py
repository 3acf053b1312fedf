"""Find the rows of a text file with operations over whole blocks of bytes; never a step of Python per line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.data.sources.opening import PARAM
from jobs.data.sources.reader import Cut, InputFile, changed_message
from jobs.errors import InvalidInput

INDEX_BLOCK_BYTES = 2**20
READ_BLOCK_BYTES = 256 * 2**10
_NEWLINE = 10

Positions = NDArray[np.int64]


class Splitter(Protocol):
    """Says where records end. One is made for each scan, for it may remember the blocks before."""

    @property
    def blank(self) -> bytes | None:
        """A record of these bytes alone, its ending included, is not a row; None: every record is one."""
        ...

    def endings(self, block: NDArray[np.uint8], newlines: Positions) -> Positions | None:
        """Indices into `block` of the bytes that end a record; None when they are all the newlines."""
        ...

    def fault(self, line: int) -> str | None:
        """What is wrong with the file as a whole, in words, known once its end was reached.

        Args:
            line: 1-based physical line that the scan began on.
        """
        ...


class Lines:
    """Each newline ends a record; lines of white space are no rows, unless every line is to be one."""

    def __init__(self, *, keep_blank: bool = False) -> None:
        """
        Args:
            keep_blank: whether blank lines are rows as well.
        """
        self.blank = None if keep_blank else b" \t\r\n\v\f"

    def endings(self, block: NDArray[np.uint8], newlines: Positions) -> None:
        """All newlines."""

    def fault(self, line: int) -> None:
        """Nothing is ever wrong with lines."""


class Escapes:
    """Says which bytes are escaped by the one before them. One is made for each scan."""

    def __init__(self, mark: str | None) -> None:
        """
        Args:
            mark: the escape character, an ASCII one; None: nothing is escaped.
        """
        self._mark = None if mark is None else ord(mark)
        self._is_open = False  # the byte before this block escapes the first one of it

    def mask(self, block: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        """Whether each byte is escaped; None where none is. The next block goes on behind this one."""
        if self._mark is None:
            return None
        escapes = np.flatnonzero(block == self._mark)
        if not escapes.size and not self._is_open:
            return None
        is_escaped = np.zeros(block.size + 1, dtype=bool)
        if self._is_open:
            is_escaped[0] = True
            escapes = escapes[1:] if escapes.size and escapes[0] == 0 else escapes
        if escapes.size:
            begins = np.flatnonzero(np.diff(escapes, prepend=-2) != 1)  # of each run of escape characters
            first = np.repeat(escapes[begins], np.diff(begins, append=escapes.size))
            is_escaped[escapes[(escapes - first) % 2 == 0] + 1] = True  # the first, third, ... of a run escape
        self._is_open = bool(is_escaped[-1])
        return is_escaped[:-1]


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of the file and the records that end in it."""

    data: bytes
    base: int
    """Offset in the file of the first byte of `data`."""
    starts: Positions
    """Offset in the file of each record's first byte; that of the first may lie in an earlier block."""
    ends: Positions
    """Offset in the file of each record's end, the byte that ends it not included."""
    lines: Positions
    """1-based physical line on which each record starts."""
    is_row: NDArray[np.bool_]
    """Whether each record is a row, not a blank."""
    open_start: int
    """Offset of the record that goes on in the next block."""


def scan(handle: BinaryIO, splitter: Splitter, *, offset: int, line: int, block_bytes: int) -> Iterator[Block]:
    """Read from `offset`, where a record starts on physical line `line`, to the end of the file, block by block."""
    handle.seek(offset)
    is_blank_byte = np.zeros(256, dtype=bool)
    blank = splitter.blank
    is_blank_byte[np.frombuffer(blank or b"", np.uint8)] = True
    base, base_line = offset, line
    open_start, open_line, open_blank = offset, line, blank is not None
    while data := handle.read(block_bytes):
        block = np.frombuffer(data, np.uint8)
        newlines = np.flatnonzero(block == _NEWLINE)
        endings = splitter.endings(block, newlines)
        ends = newlines if endings is None else endings
        starts, lines = np.empty_like(ends), np.empty_like(ends)
        is_row = np.empty(0, dtype=bool)
        tail = 0
        if ends.size:
            starts[0], starts[1:] = 0, ends[:-1] + 1
            if blank is None:
                is_row = np.ones(ends.size, dtype=bool)
            else:
                is_row = ~_are_blank(block, starts, ends, is_blank_byte)
                is_row[0] |= not open_blank
            passed = np.arange(1, ends.size + 1) if endings is None else np.searchsorted(newlines, ends, side="right")
            lines[0], lines[1:] = open_line, base_line + passed[:-1]
            starts += base
            starts[0] = open_start
            tail = int(ends[-1]) + 1
            open_start, open_line, open_blank = base + tail, base_line + int(passed[-1]), blank is not None
        open_blank = open_blank and not data[tail:].strip(blank)
        yield Block(data, base, starts, ends + base, lines, is_row, open_start)
        base += len(data)
        base_line += newlines.size
    if open_start < base:  # the last line has no newline
        one = np.array([open_start]), np.array([base]), np.array([open_line]), np.array([not open_blank])
        yield Block(b"", base, *one, open_start=base)


def cut_rows(
    handle: BinaryIO, file: InputFile, splitter: Splitter, chunk_rows: int, *, offset: int, line: int
) -> Iterator[Cut]:
    """Count the rows from `offset` on and note the place of each `chunk_rows`-th one.

    Raises:
        InvalidInput: the file does not end where it did when it was looked at, or is at fault as a whole.
    """
    num_rows = 0
    begun: Cut | None = None
    end = offset
    for block in scan(handle, splitter, offset=offset, line=line, block_bytes=INDEX_BLOCK_BYTES):
        end = block.base + len(block.data)
        starts, lines = block.starts, block.lines
        if not block.is_row.all():
            starts, lines = starts[block.is_row], lines[block.is_row]
        for at in range(-num_rows % chunk_rows, starts.size, chunk_rows):
            row = num_rows + at
            if begun is not None:
                yield begun._replace(stop=row)
            begun = Cut(row, row, row, {"offset": int(starts[at]), "line": int(lines[at])})
        num_rows += starts.size
    if file.size >= 0 and end != max(file.size, offset):
        raise InvalidInput(changed_message(file), param=PARAM)
    fault = splitter.fault(line)
    if fault is not None:
        raise InvalidInput(f"{PARAM}: '{file.name}': {fault}", param=PARAM)
    if begun is not None:
        yield begun._replace(stop=num_rows)


class Text(NamedTuple):
    """One row's bytes, without its line ending."""

    data: bytes | None
    """None where the row is longer than the limit."""
    line: int
    offset: int


def read_rows(
    handle: BinaryIO, splitter: Splitter, *, offset: int, line: int, skip: int, count: int, max_bytes: int
) -> Iterator[Text]:
    """The `count` rows after the first `skip` ones from `offset` on; fewer where the file ends before.

    A row longer than `max_bytes` is passed over without being held.
    """
    held = bytearray()  # the beginning of a record that started in an earlier block
    stop = skip + count
    row = 0
    for block in scan(handle, splitter, offset=offset, line=line, block_bytes=READ_BLOCK_BYTES):
        records: Any = zip(
            block.starts.tolist(),
            block.ends.tolist(),
            block.lines.tolist(),
            block.is_row.tolist(),
            strict=True,
        )
        for start, end, number, is_row in records:
            if is_row:
                if row >= skip:
                    yield Text(_text(block, held, start, end, max_bytes), number, start)
                row += 1
                if row >= stop:
                    return
            if start < block.base:
                held.clear()
        goes_on = block.data[max(block.open_start - block.base, 0) :]
        if len(held) + len(goes_on) <= max_bytes + 1:  # one more for a carriage return
            held += goes_on
        else:
            held.clear()  # too long by its offsets alone; `_text` sees that


def _text(block: Block, held: bytearray, start: int, end: int, max_bytes: int) -> bytes | None:
    if end - start > max_bytes + 1:
        return None
    data = block.data[max(start - block.base, 0) : end - block.base]
    if start < block.base:
        data = bytes(held) + data
    data = data.removesuffix(b"\r")
    return data if len(data) <= max_bytes else None


def _are_blank(
    block: NDArray[np.uint8], starts: Positions, ends: Positions, is_blank_byte: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    blank: NDArray[np.bool_] = starts == ends
    doubtful = np.flatnonzero(is_blank_byte[block[starts]] & ~blank)  # begin like a blank; mostly none
    if doubtful.size:
        others = np.append(np.flatnonzero(~is_blank_byte[block]), block.size)
        blank[doubtful] = others[np.searchsorted(others, starts[doubtful])] >= ends[doubtful]
    return blank
