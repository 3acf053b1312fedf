"""Read plain text by byte offsets: each line is a row with one column, `text`, blank lines included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from jobs.data.sources import open_file
from jobs.data.sources.formats import block_scan
from jobs.data.sources.formats.encodings import TextEncoding
from jobs.data.sources.formats.texts import check_encoding, data_start, row_text, too_large
from jobs.data.sources.reader import Cut, InputFile, Record

COLUMN = "text"


class PlainTextReader:
    """Reads `.txt` files, one row per line, with LF or CRLF, with or without a byte order mark."""

    def __init__(self, *, max_row_bytes: int, encoding: TextEncoding) -> None:
        """
        Args:
            max_row_bytes: Maximum size of a line without its ending; a longer one is a row error.
            encoding: The files' encoding.
        """
        self._max_row_bytes = max_row_bytes
        self._encoding = encoding

    def stamped(self, file: InputFile) -> InputFile:
        """Return the file with its current size and stamp."""
        return open_file.stamped(file)

    def column_names(self, file: InputFile) -> list[str] | None:
        """The only column, `text`; None if the file is empty.

        Raises:
            InvalidInput: The file has another encoding.
        """
        with open_file.opened(file) as handle:
            start = data_start(handle, file)
            check_encoding(self._texts(handle, start, 1, 0, 2**62), file, self._encoding)
            handle.seek(start)
            return [COLUMN] if handle.read(1) else None

    def cut(self, file: InputFile, chunk_rows: int) -> Iterator[Cut]:
        """Count lines block by block and split them into chunks."""
        with open_file.opened(file) as handle:
            lines, start = block_scan.Lines(keep_blank=True), data_start(handle, file)
            yield from block_scan.cut_rows(handle, file, lines, chunk_rows, offset=start, line=1)

    def records(self, file: InputFile, place: Mapping[str, Any], skip: int, count: int) -> Iterator[Record]:
        """Decode the lines at `place`."""
        with open_file.opened(file) as handle:
            for text in self._texts(handle, place["offset"], place["line"], skip, count):
                if text.data is None:
                    yield Record(too_large(text.line, self._max_row_bytes), text.line)
                    continue
                row = row_text(text.data, text.line, self._encoding)
                yield Record({COLUMN: row} if isinstance(row, str) else row, text.line)

    def _texts(self, handle: BinaryIO, offset: int, line: int, skip: int, count: int) -> Iterator[block_scan.Text]:
        lines, limit = block_scan.Lines(keep_blank=True), self._max_row_bytes
        return block_scan.read_rows(handle, lines, offset=offset, line=line, skip=skip, count=count, max_bytes=limit)
