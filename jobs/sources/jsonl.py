"""Read JSON lines: one JSON object in each line, by byte offsets.

What JSON leaves open: `NaN`, `Infinity`, numbers beyond a double, lone surrogates (escaped or as bytes), control
characters in strings and more than 1,024 levels of nesting make the row an error; integers beyond 64 bits are read as
the nearest double; of two equal names in one object the last counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import orjson

from jobs.errors import InvalidInput
from jobs.rows import RowError
from jobs.sources import opening, scanning
from jobs.sources.reader import Cut, InputFile, Record

_HEAD_ROWS = 100
_HEAD_BYTES = 2**20
_UTF8_MARK = b"\xef\xbb\xbf"
_WRONG_BEGINNINGS = (
    (b"\xff\xfe", "is UTF-16 or UTF-32; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16; save it as UTF-8"),
    (b"\x1f\x8b", "is compressed with gzip, in which rows cannot be found without reading all of it; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it first"),
    (b"PK\x03\x04", "is a zip archive; unpack it first"),
    (b"PAR1", "is a Parquet file; name it .parquet or set input.format to parquet"),
)


class JsonLinesReader:
    """Reads `.jsonl` files: UTF-8 with or without a byte order mark, LF or CRLF, blank lines passed over."""

    def __init__(self, *, max_row_bytes: int) -> None:
        """
        Args:
            max_row_bytes: longest line, without its ending; a longer one is a row error.
        """
        self._max_row_bytes = max_row_bytes

    def stamped(self, file: InputFile) -> InputFile:
        """The same file with its present size and stamp."""
        return opening.stamped(file)

    def column_names(self, file: InputFile) -> list[str] | None:
        """The names in the first hundred rows (fewer where rows are long), in the order of their first appearance.

        Raises:
            InvalidInput: none of those rows is a JSON object.
        """
        names: dict[str, None] = {}
        first_error: RowError | None = None
        num_objects = 0
        with opening.opened(file) as handle:
            for text in self._texts(handle, data_start(handle, file), 1, 0, _HEAD_ROWS):
                if num_objects and text.offset > _HEAD_BYTES:
                    break
                values = self._parse(text)
                if isinstance(values, RowError):
                    first_error = first_error or values
                    continue
                num_objects += 1
                names.update(dict.fromkeys(values))
        if first_error and not num_objects:
            raise InvalidInput(
                f"{opening.PARAM}: '{file.name}' is not JSON lines: line {first_error.line}: {first_error.message}",
                param=opening.PARAM,
            )
        return list(names) if num_objects else None

    def cut(self, file: InputFile, chunk_rows: int) -> Iterator[Cut]:
        """Count lines block by block."""
        with opening.opened(file) as handle:
            offset = data_start(handle, file)
            yield from scanning.cut_rows(handle, file, scanning.Lines(), chunk_rows, offset=offset, line=1)

    def records(self, file: InputFile, place: Mapping[str, Any], skip: int, count: int) -> Iterator[Record]:
        """Parse the lines at `place`."""
        with opening.opened(file) as handle:
            for text in self._texts(handle, place["offset"], place["line"], skip, count):
                yield Record(self._parse(text), text.line)

    def _texts(self, handle: BinaryIO, offset: int, line: int, skip: int, count: int) -> Iterator[scanning.Text]:
        limit = self._max_row_bytes
        return scanning.read_rows(
            handle, scanning.Lines(), offset=offset, line=line, skip=skip, count=count, max_bytes=limit
        )

    def _parse(self, text: scanning.Text) -> Mapping[str, Any] | RowError:
        if text.data is None:
            return too_large(text.line, self._max_row_bytes)
        try:
            value = orjson.loads(text.data)
        except orjson.JSONDecodeError as error:
            return invalid_utf8(text.data, text.line) or RowError(
                "invalid_json_line", f"the line is not valid JSON: {error.msg} (column {error.pos + 1})", text.line
            )
        if not isinstance(value, dict):
            return RowError("not_an_object", "the line is JSON but not an object with columns", text.line)
        return value


def data_start(handle: BinaryIO, file: InputFile) -> int:
    """The offset behind a UTF-8 byte order mark, or 0.

    Raises:
        InvalidInput: the file begins like another format.
    """
    handle.seek(0)
    head = handle.read(4)
    for beginning, reason in _WRONG_BEGINNINGS:
        if head.startswith(beginning):
            raise InvalidInput(f"{opening.PARAM}: '{file.name}' {reason}", param=opening.PARAM)
    return len(_UTF8_MARK) if head.startswith(_UTF8_MARK) else 0


def too_large(line: int, max_row_bytes: int) -> RowError:
    """The row error of a row that is longer than the limit."""
    return RowError("row_too_large", f"the row is longer than {max_row_bytes} bytes (setting max_row_bytes)", line)


def invalid_utf8(data: bytes, line: int) -> RowError | None:
    """The row error of a row whose bytes are not UTF-8, or None where they are."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return RowError("invalid_utf8", f"the row is not valid UTF-8 at its byte {error.start + 1}", line)
    return None
