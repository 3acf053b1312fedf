"""Find the rows of a text file with NumPy operations on blocks of bytes, without Python code per line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.data.sources.open_file import PARAM
from jobs.data.sources.reader import Cut, InputFile, changed_message
from jobs.errors import InvalidInput

INDEX_BLOCK_BYTES = 2**20
READ_BLOCK_BYTES = 256 * 2**10
_NEWLINE = 10

Positions = NDArray[np.int64]


class Splitter(Protocol):
    """Finds the ends of records. Each scan needs a new one, because it may keep state between blocks."""

    @property
    def blank(self) -> bytes | None:
        """Bytes of blank records: a record of only these bytes is not a row. None: every record is a row."""
        ...

    def endings(self, block: NDArray[np.uint8], newlines: Positions) -> Positions | None:
        """Indices into `block` of the bytes that end a record; None if these are exactly the newlines."""
        ...

    def fault(self, line: int) -> str | None:
        """A message if the file as a whole is invalid, otherwise None; called after the last block.

        Args:
            line: 1-based physical line on which the scan began.
        """
        ...


class Lines:
    """Splits at each newline. Lines of white space are not rows unless `keep_blank` is set."""

    def __init__(self, *, keep_blank: bool = False) -> None:
        """
        Args:
            keep_blank: Whether blank lines are rows, too.
        """
        self.blank = None if keep_blank else b" \t\r\n\v\f"

    def endings(self, block: NDArray[np.uint8], newlines: Positions) -> None:
        """Return None: all newlines end a record."""

    def fault(self, line: int) -> None:
        """Return None: a file of lines is never invalid as a whole."""


class Escapes:
    """Finds bytes that are escaped by the byte before them. Each scan needs a new one."""

    def __init__(self, mark: str | None) -> None:
        """
        Args:
            mark: The escape character, which must be ASCII; None if nothing is escaped.
        """
        self._mark = None if mark is None else ord(mark)
        self._is_open = False  # whether the byte before this block escapes its first byte

    def mask(self, block: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        """Whether each byte is escaped; None if none is. Blocks must be passed in file order."""
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
            begins = np.flatnonzero(np.diff(escapes, prepend=-2) != 1)  # start of each run of escape characters
            first = np.repeat(escapes[begins], np.diff(begins, append=escapes.size))
            # the first, third, ... byte of a run escapes the next byte
            is_escaped[escapes[(escapes - first) % 2 == 0] + 1] = True
        self._is_open = bool(is_escaped[-1])
        return is_escaped[:-1]


@dataclass(frozen=True, slots=True)
class Block:
    """A block of the file and the records that end in it."""

    data: bytes
    base: int
    """File offset of the first byte of `data`."""
    starts: Positions
    """File offset of each record's first byte; the first record may start in an earlier block."""
    ends: Positions
    """File offset of the byte that ends each record."""
    lines: Positions
    """1-based physical line on which each record starts."""
    is_row: NDArray[np.bool_]
    """Whether each record is a row and not blank."""
    open_start: int
    """File offset of the record that continues in the next block."""


def scan(handle: BinaryIO, splitter: Splitter, *, offset: int, line: int, block_bytes: int) -> Iterator[Block]:
    """Read the file in blocks from `offset`, where a record starts on physical line `line`, to its end."""
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
    """Count the rows from `offset` on and split them into chunks of `chunk_rows` rows.

    Raises:
        InvalidInput: The file's size changed, or the file as a whole is invalid.
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
    """The bytes; None if the row is longer than the limit."""
    line: int
    offset: int


def read_rows(
    handle: BinaryIO, splitter: Splitter, *, offset: int, line: int, skip: int, count: int, max_bytes: int
) -> Iterator[Text]:
    """Skip `skip` rows from `offset` on and yield the next `count`; fewer if the file ends before.

    Rows longer than `max_bytes` are never held in memory.
    """
    held = bytearray()  # the part of the current record that is in earlier blocks
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
        if len(held) + len(goes_on) <= max_bytes + 1:  # one more byte for a carriage return
            held += goes_on
        else:
            held.clear()  # too long; `_text` detects this by the record's offsets


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
    # records that begin with a blank byte; usually none
    doubtful = np.flatnonzero(is_blank_byte[block[starts]] & ~blank)
    if doubtful.size:
        others = np.append(np.flatnonzero(~is_blank_byte[block]), block.size)
        blank[doubtful] = others[np.searchsorted(others, starts[doubtful])] >= ends[doubtful]
    return blank
