"""Where the rows of a job come from: JSON lines, CSV, Parquet and Hugging Face data sets, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from jobs.errors import InvalidInput
from jobs.settings import Settings
from jobs.sources.delimited import DelimitedReader
from jobs.sources.inputs import InputSource
from jobs.sources.jsonl import JsonLinesReader
from jobs.sources.locate import Locator
from jobs.sources.reader import Reader
from jobs.sources.source import ChunkRange, Source
from jobs.sources.values import RowMapper
from jobs.specs import InputSpec
from jobs.store import Store
from jobs.tables import StoredFile

__all__ = ["ChunkRange", "Source", "check_columns", "open_source"]

_SHOWN_COLUMNS = 20
_SHOWN_CHARACTERS = 60


def open_source(
    spec_input: InputSpec,
    columns: Mapping[str, str],
    *,
    settings: Settings,
    store: Store,
    find_upload: Callable[[str], StoredFile],
) -> Source:
    """The source that a spec names. Nothing is looked at yet: files are found when they are named or indexed.

    Args:
        spec_input: paths, format, key, split and delimiter.
        columns: the task's input name -> the user's column.
        settings: `input_roots` and `max_row_bytes` bound what is read.
        store: where uploads lie.
        find_upload: finds an upload by its id; raises NotFound. Not used to read.

    Raises:
        InvalidInput: `input.delimiter` cannot be one.
    """
    needed = sorted({*columns.values(), *([] if spec_input.key is None else [spec_input.key])})
    max_row_bytes = settings.max_row_bytes

    def open_reader(form: str) -> Reader:
        if form == "jsonl":
            return JsonLinesReader(max_row_bytes=max_row_bytes)
        if form == "csv":
            return DelimitedReader(max_row_bytes=max_row_bytes, delimiter=spec_input.delimiter)
        if form == "parquet":
            from jobs.sources.parquet import ParquetReader  # pyarrow is heavy

            return ParquetReader(columns=needed)
        from jobs.sources.hub import DatasetReader

        return DatasetReader(columns=needed, split=spec_input.split, config=spec_input.config, settings=settings)

    locator = Locator(spec_input, settings=settings, store=store, find_upload=find_upload)
    mapper = RowMapper(columns, spec_input.key, max_row_bytes=max_row_bytes)
    return InputSource(locator.files, open_reader, mapper, settings=settings)


def check_columns(source: Source, spec_input: InputSpec, columns: Mapping[str, str]) -> None:
    """Refuse a job whose columns its input does not have.

    Args:
        source: of the job.
        spec_input: whose key is checked as well.
        columns: the task's input name -> the user's column.

    Raises:
        InvalidInput: a column is missing or there are two of its name; or as in `Source.column_names`.
    """
    names = source.column_names()
    wanted = [(f"input.columns.{name}", column) for name, column in columns.items()]
    if spec_input.key is not None:
        wanted.append(("input.key", spec_input.key))
    for param, column in wanted:
        if column not in names:
            raise InvalidInput(f"{param}: the input has no column '{column}', only {_listed(names)}", param=param)
        if names.count(column) > 1:
            raise InvalidInput(f"{param}: the input has several columns '{column}'", param=param)


def _listed(names: Iterable[str]) -> str:
    shown = [name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..." for name in names]
    rest = len(shown) - _SHOWN_COLUMNS
    return ", ".join(shown[:_SHOWN_COLUMNS]) + (f" and {rest} more" if rest > 0 else "")
