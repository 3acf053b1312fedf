"""Sources of a job's rows: JSON, CSV, text and Parquet files and data sets, behind one protocol."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import PurePosixPath

from jobs.config.access_rules import AccessRules
from jobs.data.sources.formats.delimited import DelimitedReader
from jobs.data.sources.formats.encodings import text_encoding
from jobs.data.sources.formats.jsonl import JsonReader
from jobs.data.sources.formats.plain_text import PlainTextReader
from jobs.data.sources.inputs import InputSource
from jobs.data.sources.locate import SUFFIXES, Locator
from jobs.data.sources.reader import Reader
from jobs.data.sources.source import ChunkRange, Source
from jobs.data.sources.values import RowMapper
from jobs.data.store import Store
from jobs.db.tables import StoredFile
from jobs.errors import InvalidInput
from jobs.messages import short
from jobs.specs.inference import InputSpec

__all__ = ["ChunkRange", "Source", "check_columns", "open_source"]

_SHOWN_COLUMNS = 20
_SHOWN_CHARACTERS = 60
_TEXT_FORMATS = frozenset({"jsonl", "json", "text"})
_CSV_FIELDS = ("quoting", "quotechar", "escapechar")


def open_source(
    spec_input: InputSpec,
    columns: Mapping[str, str],
    *,
    rules: AccessRules,
    store: Store,
    find_upload: Callable[[str], StoredFile],
    optional: Collection[str] = (),
) -> Source:
    """Create the source that a spec names. No file is accessed yet: files are listed only for columns and the index.

    Args:
        spec_input: Paths, format, key, split, and options for reading text files.
        columns: Maps the task's input names to the user's columns.
        rules: The `input_roots` and `max_row_bytes` that limit what is read.
        store: The store that holds uploads.
        find_upload: Finds an upload by its id, or raises NotFound. Reading rows does not call it.
        optional: Names of inputs that a row may omit.

    Raises:
        InvalidInput: One of the options for text files is invalid.
    """
    needed = sorted({*columns.values(), *([] if spec_input.key is None else [spec_input.key])})
    max_row_bytes = rules.max_row_bytes

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
            from jobs.data.sources.formats.parquet import ParquetReader  # pyarrow is heavy

            return ParquetReader(columns=needed, max_row_bytes=max_row_bytes)
        from jobs.data.sources.hub import DatasetReader

        return DatasetReader(columns=needed, split=spec_input.split, config=spec_input.config, rules=rules)

    locator = Locator(spec_input, rules=rules, store=store, find_upload=find_upload)
    mapper = RowMapper(columns, spec_input.key, max_row_bytes=max_row_bytes, optional=optional)
    return InputSource(locator.files, open_reader, mapper, rules=rules)


def check_columns(
    source: Source,
    spec_input: InputSpec,
    columns: Mapping[str, str],
    *,
    optional: Collection[str] = (),
    most_files: int | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Reject a job if a column that it uses is missing or duplicated in any of its input files.

    An optional input that the spec does not map may be missing in all files; one that it maps must be in at least one.

    Args:
        source: The job's source.
        spec_input: The job's input spec; its key column is checked, too.
        columns: Maps the task's input names to the user's columns.
        optional: Names of inputs that a row may omit.
        most_files: Maximum number of files to check, from the first one on; None checks all.
        is_wanted: Called before each file; the check stops when it returns False.

    Raises:
        InvalidInput: A column is missing or duplicated, or an error of `Source.column_names` occurred.
        InterruptedError: `is_wanted` returned False.
    """
    wanted = [(f"input.columns.{name}", column, name in optional) for name, column in columns.items()]
    if spec_input.key is not None:
        wanted.append(("input.key", spec_input.key, False))
    seen: dict[str, None] = {}
    num_files = 0
    for file, names in itertools.islice(source.columns_by_file(), most_files):
        if not is_wanted():
            raise InterruptedError("the columns are no longer wanted")
        num_files += 1
        seen.update(dict.fromkeys(names))
        for param, column, may_miss in wanted:
            if column not in names and not may_miss:
                advice = ""
                if len(names) == 1 and _is_csv(spec_input, file):
                    advice = "; if it has no header and each line is a row, set input.format to text"
                raise InvalidInput(
                    f"{param}: '{file}' has no column '{column}'; it has {_listed(names)}{advice}", param=param
                )
            if names.count(column) > 1:
                raise InvalidInput(f"{param}: '{file}' has more than one column '{column}'", param=param)
    if num_files == most_files:
        return  # a file that was not checked may have the column
    for name, column in columns.items():
        if name in optional and name in spec_input.columns and column not in seen:
            param = f"input.columns.{name}"
            raise InvalidInput(f"{param}: the input has no column '{column}'; it has {_listed(seen)}", param=param)


def _is_csv(spec_input: InputSpec, file: str) -> bool:
    suffix = PurePosixPath(file).suffix.lower()
    return spec_input.format == "csv" or (spec_input.format == "auto" and SUFFIXES.get(suffix) == "csv")


def _check_fields(spec_input: InputSpec, form: str) -> None:
    """Reject an option that does not apply to the format; otherwise it would be silently ignored."""
    for name in () if form == "csv" else _CSV_FIELDS if form in _TEXT_FORMATS else (*_CSV_FIELDS, "encoding"):
        if getattr(spec_input, name) != InputSpec.model_fields[name].default:
            kinds = "text files" if name == "encoding" else "CSV files"
            raise InvalidInput(
                f"input.{name}: can only be used with {kinds}, but the input is {form}", param=f"input.{name}"
            )


def _listed(names: Iterable[str]) -> str:
    shown = [short(name, _SHOWN_CHARACTERS) for name in names]
    rest = len(shown) - _SHOWN_COLUMNS
    return ", ".join(shown[:_SHOWN_COLUMNS]) + (f" and {rest} more" if rest > 0 else "")
