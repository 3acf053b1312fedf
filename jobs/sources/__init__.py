"""Where the rows of a job come from: JSON, CSV, text and Parquet files and data sets, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from jobs.errors import InvalidInput
from jobs.settings import Settings
from jobs.sources.delimited import DelimitedReader
from jobs.sources.inputs import InputSource
from jobs.sources.jsonl import JsonReader
from jobs.sources.locate import Locator
from jobs.sources.plain_text import PlainTextReader
from jobs.sources.reader import Reader
from jobs.sources.source import ChunkRange, Source
from jobs.sources.values import RowMapper
from jobs.specs import InputSpec
from jobs.store import Store
from jobs.tables import StoredFile
from jobs.text_encodings import text_encoding

__all__ = ["ChunkRange", "Source", "check_columns", "open_source"]

_SHOWN_COLUMNS = 20
_SHOWN_CHARACTERS = 60
_TEXT_FORMATS = frozenset({"jsonl", "json", "text"})
_CSV_FIELDS = ("quoting", "quotechar", "escapechar")


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
        spec_input: paths, format, key, split, and how text files are to be read.
        columns: the task's input name -> the user's column.
        settings: `input_roots` and `max_row_bytes` bound what is read.
        store: where uploads lie.
        find_upload: finds an upload by its id; raises NotFound. Not used to read.

    Raises:
        InvalidInput: one of the fields for text files cannot be used.
    """
    needed = sorted({*columns.values(), *([] if spec_input.key is None else [spec_input.key])})
    max_row_bytes = settings.max_row_bytes

    def open_reader(form: str) -> Reader:
        _check_fields(spec_input, form)
        encoding = text_encoding(spec_input.encoding)
        if form in {"jsonl", "json"}:
            return JsonReader(max_row_bytes=max_row_bytes, encoding=encoding, may_be_array=form == "json")
        if form == "csv":
            return DelimitedReader(spec_input, max_row_bytes=max_row_bytes)
        if form == "text":
            return PlainTextReader(max_row_bytes=max_row_bytes, encoding=encoding)
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


def _check_fields(spec_input: InputSpec, form: str) -> None:
    """Refuse a field that would be passed over in silence, for it does not go with the format."""
    for name in () if form == "csv" else _CSV_FIELDS if form in _TEXT_FORMATS else (*_CSV_FIELDS, "encoding"):
        if getattr(spec_input, name) != InputSpec.model_fields[name].default:
            kinds = "text files" if name == "encoding" else "CSV files"
            raise InvalidInput(f"input.{name}: goes with {kinds}, and the input is {form}", param=f"input.{name}")


def _listed(names: Iterable[str]) -> str:
    shown = [name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..." for name in names]
    rest = len(shown) - _SHOWN_COLUMNS
    return ", ".join(shown[:_SHOWN_COLUMNS]) + (f" and {rest} more" if rest > 0 else "")
