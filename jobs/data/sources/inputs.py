"""One source over all files of an input: it finds them, numbers their rows and checks each file before reading it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jobs.access.paths import check_input_url, is_local, resolve_input_path
from jobs.config.access_rules import AccessRules
from jobs.data.rows import Row
from jobs.data.sources.formats.class_names import NamesClasses
from jobs.data.sources.open_file import PARAM
from jobs.data.sources.reader import InputFile, Reader, changed_message
from jobs.data.sources.source import ChunkRange
from jobs.data.sources.values import RowMapper
from jobs.errors import InvalidInput


class InputSource:
    """A `Source` over one or many files of one format."""

    def __init__(
        self,
        find_files: Callable[[], Sequence[InputFile]],
        open_reader: Callable[[str], Reader],
        mapper: RowMapper,
        *,
        rules: AccessRules,
    ) -> None:
        """
        Args:
            find_files: Lists the files. It is called for columns and the index, never for reading rows.
            open_reader: Creates the reader of a format.
            mapper: Converts records to rows.
            rules: The access rules; files outside their roots may not be read.
        """
        self._find_files = find_files
        self._open_reader = open_reader
        self._mapper = mapper
        self._rules = rules
        self._readers: dict[str, Reader] = {}

    def column_names(self) -> list[str]:
        """The columns of the first file that has rows or a header; see `Source`."""
        _, names = next(self.columns_by_file())
        return names

    def columns_by_file(self) -> Iterator[tuple[str, list[str]]]:
        """List the columns of each file; see `Source`."""
        is_empty = True
        for file in self._find_files():
            names = self._reader(file).column_names(file)
            if names is not None:
                is_empty = False
                yield file.name, names
        if is_empty:
            raise self._empty()

    def class_names(self, column: str) -> list[str] | None:
        """The class names that the first file stores; see `Source`."""
        file = next(iter(self._find_files()))
        reader = self._reader(file)
        return reader.class_names(file, column) if isinstance(reader, NamesClasses) else None

    def index(self, chunk_rows: int) -> Iterator[ChunkRange]:
        """Split one file after the other into chunks; see `Source`."""
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows is {chunk_rows}, but a chunk must have at least one row")
        first_row = 0
        for found in self._find_files():
            reader = self._reader(found)
            file = reader.stamped(found)
            stop = 0
            for cut in reader.cut(file, chunk_rows):
                stop = cut.stop
                locator = {**_locator(file), "row": first_row + cut.row, **cut.place}
                yield ChunkRange(first_row + cut.start, first_row + stop, locator)
            first_row += stop
        if first_row == 0:
            raise self._empty()

    def read(self, start_row: int, stop_row: int, locator: dict[str, Any]) -> Iterator[Row]:
        """Read rows from the locator's place on; see `Source`."""
        file = _file(locator)
        skip = start_row - locator["row"]
        if skip < 0 or stop_row < start_row:
            raise ValueError(f"rows [{start_row}, {stop_row}) begin before the locator's row {locator['row']}")
        if start_row == stop_row:
            return
        self._check_allowed(file)
        records = self._reader(file).records(file, locator, skip, stop_row - start_row)
        row_index = start_row
        for record in records:
            yield self._mapper.row(row_index, record)
            row_index += 1
        if row_index < stop_row:
            raise InvalidInput(changed_message(file), param=PARAM)

    def _reader(self, file: InputFile) -> Reader:
        if file.format not in self._readers:
            self._readers[file.format] = self._open_reader(file.format)
        return self._readers[file.format]

    def _check_allowed(self, file: InputFile) -> None:
        """Check access again at read time: a parent folder may now be a link that leads out of the roots."""
        if file.is_upload or file.url.startswith("hf://"):
            return
        if is_local(file.url):
            resolve_input_path(file.url, self._rules)
        else:
            check_input_url(file.url, self._rules)

    def _empty(self) -> InvalidInput:
        names = [file.name for file in self._find_files()]
        what = f"'{names[0]}' has no rows" if len(names) == 1 else f"none of the {len(names)} files has any rows"
        return InvalidInput(f"{PARAM}: {what}", param=PARAM)


def _locator(file: InputFile) -> dict[str, Any]:
    facts: dict[str, Any] = {"file": file.url, "format": file.format, "size": file.size, "stamp": file.stamp}
    if file.is_upload:
        return {**facts, "upload": file.name}
    return facts if file.name == file.url else {**facts, "name": file.name}


def _file(locator: Mapping[str, Any]) -> InputFile:
    upload = locator.get("upload")
    return InputFile(
        url=locator["file"],
        name=upload if upload is not None else locator.get("name", locator["file"]),
        format=locator["format"],
        size=locator["size"],
        stamp=locator["stamp"],
        is_upload=upload is not None,
    )
