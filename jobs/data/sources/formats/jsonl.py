"""Read JSON by byte offsets: JSON Lines, with one object per line, or one array of objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jobs.data.rows import RowError
from jobs.data.sources import open_file
from jobs.data.sources.formats import block_scan
from jobs.data.sources.formats.encodings import UTF8, TextEncoding
from jobs.data.sources.formats.json_values import parse_object
from jobs.data.sources.formats.texts import check_encoding, data_start, too_large
from jobs.data.sources.reader import Cut, InputFile, Record
from jobs.errors import InvalidInput

_HEAD_ROWS = 100
_HEAD_BYTES = 2**20
_SPACE = b" \t\r\n"
_LONGEST_SPACE_BYTES = 64 * 2**10  # maximum white space before an array's opening bracket
_ARRAY = "array"
"""Key in a chunk's place: the file is one JSON array."""
_QUOTE, _COMMA, _CLOSE = (ord(mark) for mark in '",]')
_STEPS = np.zeros(256, dtype=np.int64)
_STEPS[[ord("["), ord("{")]] = 1
_STEPS[[ord("]"), ord("}")]] = -1
_IS_MARK = _STEPS != 0
_IS_MARK[_COMMA] = True


class ArrayItems:
    """Splits a JSON array at the commas between its items and at its closing bracket."""

    blank = _SPACE

    def __init__(self) -> None:
        self._escapes = block_scan.Escapes("\\")
        self._in_string = False
        self._depth = 1  # the scan begins within the array
        self._is_closed = False
        self._fault: str | None = None

    def endings(self, block: NDArray[np.uint8], newlines: block_scan.Positions) -> block_scan.Positions:  # noqa: ARG002 - newlines do not end items
        """Indices of the commas between items and of the closing bracket."""
        if self._is_closed:
            self._check_rest(block)
            return np.empty(0, dtype=np.int64)
        is_escaped = self._escapes.mask(block)
        quotes = np.flatnonzero(block == _QUOTE)
        if is_escaped is not None:
            quotes = quotes[~is_escaped[quotes]]
        marks = np.flatnonzero(_IS_MARK[block])
        marks = marks[(np.searchsorted(quotes, marks) + self._in_string) % 2 == 0]
        self._in_string = bool((quotes.size + self._in_string) % 2)
        kinds = block[marks]
        depths = self._depth + np.cumsum(_STEPS[kinds])
        closed = np.flatnonzero(depths <= 0)
        if closed.size:
            last = int(closed[0])
            self._is_closed = True
            if kinds[last] != _CLOSE:
                self._fault = "the JSON array does not end with ]"
            self._check_rest(block[int(marks[last]) + 1 :])
            marks, kinds, depths = marks[: last + 1], kinds[: last + 1], depths[: last + 1]
        self._depth = int(depths[-1]) if depths.size else self._depth
        ends: block_scan.Positions = marks[(kinds == _COMMA) & (depths == 1) | (depths == 0)]
        return ends

    def fault(self, line: int) -> str | None:  # noqa: ARG002 - the error is at the end of the file
        """A message if the array does not end at the end of the file; otherwise None."""
        if not self._is_closed:
            return "the JSON array is not closed at the end of the file; a bracket or a quote is missing"
        return self._fault

    def _check_rest(self, rest: NDArray[np.uint8]) -> None:
        if rest.tobytes().strip(_SPACE):
            self._fault = self._fault or "the file has more content after the end of its JSON array"


class JsonReader:
    """Reads `.jsonl` and `.json` files, with LF or CRLF, with or without a byte order mark. Blank lines are skipped."""

    def __init__(self, *, max_row_bytes: int, encoding: TextEncoding = UTF8, may_be_array: bool = False) -> None:
        """
        Args:
            max_row_bytes: Maximum size of a line or item without its ending; a longer one is a row error.
            encoding: The files' encoding.
            may_be_array: Whether a file that begins with a bracket is read as one array of objects.
        """
        self._max_row_bytes = max_row_bytes
        self._encoding = encoding
        self._may_be_array = may_be_array

    def stamped(self, file: InputFile) -> InputFile:
        """Return the file with its current size and stamp."""
        return open_file.stamped(file)

    def column_names(self, file: InputFile) -> list[str] | None:
        """The names in the first 100 rows (fewer if rows are long), in order of first appearance.

        Raises:
            InvalidInput: None of those rows is a JSON object, or the file has another encoding.
        """
        names: dict[str, None] = {}
        first_error: RowError | None = None
        num_objects = 0
        with open_file.opened(file) as handle:
            place, begins_as_array = self._begin(handle, file)
            check_encoding(self._texts(handle, place, 0, 2**62), file, self._encoding)
            for text in self._texts(handle, place, 0, _HEAD_ROWS):
                if num_objects and text.offset > _HEAD_BYTES:
                    break
                values = self._parse(text, place)
                if isinstance(values, RowError):
                    first_error = first_error or values
                    continue
                num_objects += 1
                names.update(dict.fromkeys(values))
        if first_error and not num_objects:
            kind = "a JSON array of objects" if _ARRAY in place else "JSON lines"
            reason = f"line {first_error.line}: {first_error.message}"
            if begins_as_array and _ARRAY not in place:
                reason = "line 1 begins with '['; if the file is one JSON array, set input.format to json"
            raise InvalidInput(f"{open_file.PARAM}: '{file.name}' is not {kind}: {reason}", param=open_file.PARAM)
        return list(names) if num_objects else None

    def cut(self, file: InputFile, chunk_rows: int) -> Iterator[Cut]:
        """Count lines or items block by block and split them into chunks."""
        with open_file.opened(file) as handle:
            place, _ = self._begin(handle, file)
            marks = {_ARRAY: 1} if _ARRAY in place else {}
            begin = {"offset": place["offset"], "line": place["line"]}
            for cut in block_scan.cut_rows(handle, file, _splitter(place), chunk_rows, **begin):
                yield cut._replace(place={**cut.place, **marks})

    def records(self, file: InputFile, place: Mapping[str, Any], skip: int, count: int) -> Iterator[Record]:
        """Parse the rows at `place`."""
        with open_file.opened(file) as handle:
            for text in self._texts(handle, place, skip, count):
                yield Record(self._parse(text, place), text.line)

    def _begin(self, handle: BinaryIO, file: InputFile) -> tuple[dict[str, int], bool]:
        """The place of the first row, and whether the file begins like an array."""
        start = data_start(handle, file)
        handle.seek(start)
        head = handle.read(_LONGEST_SPACE_BYTES)
        body = head.lstrip(_SPACE)
        begins_as_array = body.startswith(b"[")
        if not begins_as_array or not self._may_be_array:
            return {"offset": start, "line": 1}, begins_as_array
        space = head[: len(head) - len(body)]
        return {"offset": start + len(space) + 1, "line": 1 + space.count(b"\n"), _ARRAY: 1}, True

    def _texts(self, handle: BinaryIO, place: Mapping[str, Any], skip: int, count: int) -> Iterator[block_scan.Text]:
        offset, line, limit = place["offset"], place["line"], self._max_row_bytes
        texts = block_scan.read_rows(
            handle, _splitter(place), offset=offset, line=line, skip=skip, count=count, max_bytes=limit
        )
        return map(_without_space, texts) if _ARRAY in place else texts

    def _parse(self, text: block_scan.Text, place: Mapping[str, Any]) -> Mapping[str, Any] | RowError:
        if text.data is None:
            return too_large(text.line, self._max_row_bytes)
        what = "item" if _ARRAY in place else "line"
        return parse_object(text.data, text.line, self._encoding, what=what)


def _splitter(place: Mapping[str, Any]) -> block_scan.Splitter:
    return ArrayItems() if _ARRAY in place else block_scan.Lines()


def _without_space(text: block_scan.Text) -> block_scan.Text:
    """Remove white space before an item, and count its line from where the item begins."""
    if text.data is None:
        return text
    item = text.data.lstrip(_SPACE)
    space = text.data[: len(text.data) - len(item)]
    return block_scan.Text(item, text.line + space.count(b"\n"), text.offset)
