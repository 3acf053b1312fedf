"""Reads and checks the rows of a training, prepares them for the model, and keeps them by the hash of their content.

Rows are streamed, and prepared rows are a file that is mapped into memory, so neither has to fit into memory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.compute
from datasets import Dataset

from jobs.config.access_rules import AccessRules
from jobs.data.atomic import folder_aside
from jobs.data.sources import Source, open_source
from jobs.data.sources.training_rows import RowCheck, RowFlaw, naming_data
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import InvalidInput
from jobs.ledger.accounts.uploads import find_upload
from jobs.specs.fields import InputSpec
from jobs.specs.inference import TrainingSpec
from jobs.specs.training_options.training_tasks import TrainingTask

logger = logging.getLogger(__name__)

_BATCH_ROWS = 1000
_KEPT_SECONDS = 14 * 86_400
"""Prepared rows that were not used for this time are deleted."""
_FILE = "rows.arrow"

Record = Mapping[str, Any]
"""A row: name of the task's input -> value."""
Columns = Mapping[str, Any]
"""Prepared rows: name of the model's input -> the values of all rows."""
Prepare = Callable[[Iterable[list[tuple[int, Record]]]], Iterator[Columns]]
"""Prepares rows from batches of (row index, row)."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What one pass over all rows finds."""

    digest: str
    num_rows: int
    labels: frozenset[str]
    """Names of the classes of the rows."""


class InputRows:
    """The rows of an input. Each iteration reads them again."""

    def __init__(
        self,
        rows: InputSpec,
        columns: Mapping[str, str],
        rules: AccessRules,
        *,
        param: str,
        task: TrainingTask | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            rows: Where the rows are.
            columns: Name of the task's input -> the user's column.
            rules: What the training may read, and where uploads and artifacts are.
            param: The field of the spec, for error messages.
            task: The task that the rows are for; None for a user's module.
            names: The names of the classes in the order of ids, if the rows contain ids.
        """
        self._input, self._columns, self._rules, self.param = rows, dict(columns), rules, param
        self._task, self.names = task, names
        self._check = None if task is None else RowCheck(task, columns, names)

    def with_names(self, names: Sequence[str] | None) -> InputRows:
        """Return the same rows with names of classes: those of the data set if it has any, else the given names."""
        assert self._task is not None
        assert self._task.label is not None
        with self._opened() as source:
            found = source.class_names(self._columns[self._task.label])
        named = names if found is None else found
        return InputRows(self._input, self._columns, self._rules, param=self.param, task=self._task, names=named)

    def raw(self, name: str) -> InputRows:
        """Return the same rows with the cells of pictures or sounds as they are in the table."""
        columns = {("cell" if each == name else each): column for each, column in self._columns.items()}
        return InputRows(self._input, columns, self._rules, param=self.param, task=self._task, names=self.names)

    def classes(self, row_index: int, record: Record) -> list[str | None]:
        """Return the classes of a row; see `RowCheck`.

        Raises:
            InvalidInput: The row is invalid.
        """
        if self._check is None:
            return []
        try:
            return self._check.classes(record)
        except RowFlaw as flaw:
            raise self.invalid(row_index, str(flaw)) from flaw

    def invalid(self, row_index: int, reason: str, *, line: int | None = None) -> InvalidInput:
        """Make the error that says what is wrong with a row."""
        where = f"row {row_index}" if line is None else f"row {row_index}, line {line}"
        return InvalidInput(f"{self.param}: {where}: {reason}", param=self.param)

    def batches(self) -> Iterator[list[tuple[int, Record]]]:
        """Yield all rows in order, in batches of (row index, row).

        Raises:
            InvalidInput: A row cannot be read; the message names its line.
        """
        with self._opened() as source:
            for part in source.index(_BATCH_ROWS):
                batch: list[tuple[int, Record]] = []
                for row in source.read(part.start_row, part.stop_row, part.locator):
                    if row.error is not None:
                        raise self.invalid(row.row_index, row.error.message, line=row.error.line)
                    batch.append((row.row_index, row.values))
                yield batch

    @contextmanager
    def _opened(self) -> Iterator[Source]:
        database = Database(self._rules.resolved_database_url)  # connects only if an upload is looked up
        try:
            with naming_data(self.param):
                yield open_source(
                    self._input,
                    self._columns,
                    rules=self._rules,
                    store=Store(self._rules.resolved_store_url),
                    find_upload=partial(find_upload, database),
                    optional=() if self._task is None else self._task.optional,
                )
        finally:
            database.close()

    def survey(self) -> Survey:
        """Read every row once, to find the number of rows, their digest and their classes.

        Raises:
            InvalidInput: A row cannot be read or is invalid.
        """
        digest, num_rows = hashlib.sha256(), 0
        labels: set[str] = set()
        for batch in self.batches():
            num_rows += len(batch)
            for row_index, record in batch:
                digest.update(_identity(record))
                labels.update(one for one in self.classes(row_index, record) if one is not None)
        return Survey(digest.hexdigest(), num_rows, frozenset(labels))


def rows_of(spec: TrainingSpec, rules: AccessRules) -> tuple[InputRows, InputRows | None]:
    """Return the rows to train on and the rows to evaluate of a spec that has `data`."""
    assert spec.data is not None
    task, columns = spec.task_info, spec.columns()
    train = InputRows(spec.data.train_input, columns, rules, param="data.train", task=task)
    has_classes = task is not None and task.label is not None
    if has_classes:
        train = train.with_names(None)
    if spec.data.eval_input is None:
        return train, None
    param = "data.eval" if spec.data.eval is not None else "data.eval_split"
    eval_rows = InputRows(spec.data.eval_input, columns, rules, param=param, task=task)
    return train, eval_rows.with_names(train.names) if has_classes else eval_rows


def prepared(rows: InputRows, survey: Survey, prepare: Prepare, *, recipe: Mapping[str, Any], folder: Path) -> Dataset:
    """Prepare rows, or find them prepared in a folder by the hash of the rows and of the recipe.

    Args:
        rows: The rows to prepare.
        survey: What a pass over the same rows found.
        prepare: Prepares batches of rows, for example by tokenizing them.
        recipe: Everything else that the result depends on, as JSON values.
        folder: The folder of all prepared rows.

    Raises:
        InvalidInput: A row is invalid, or the input changed since the survey.
    """
    name = hashlib.sha256(survey.digest.encode() + orjson.dumps(recipe, option=orjson.OPT_SORT_KEYS)).hexdigest()
    kept = folder / name
    if kept.is_dir():
        logger.info("%s: %d rows, already prepared", rows.param, survey.num_rows)
        os.utime(kept)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _prune(folder)
        with folder_aside(kept) as aside:  # another training may be first with the same rows
            _write(aside / _FILE, rows, survey, prepare)
        logger.info("%s: %d rows, prepared now", rows.param, survey.num_rows)
    dataset = Dataset.from_file(str(kept / _FILE))
    assert isinstance(dataset, Dataset)
    return dataset


def as_they_are(rows: InputRows, folder: Path) -> tuple[Dataset, str]:
    """Prepare rows for a user's module: mappings by the names of their columns, unchanged.

    Args:
        rows: The rows to read.
        folder: The folder of all prepared rows.

    Returns:
        The rows, and their digest.

    Raises:
        InvalidInput: A row cannot be read, or a column has values of different types.
    """

    def tables(batches: Iterable[list[tuple[int, Record]]]) -> Iterator[Columns]:
        for batch in batches:
            yield {name: [record[name] for _, record in batch] for name in batch[0][1]}

    survey = rows.survey()
    try:
        return prepared(rows, survey, tables, recipe={"rows": "as they are"}, folder=folder), survey.digest
    except pyarrow.ArrowException as error:
        reason = f"{rows.param}: a column has values of different types: {error}"
        raise InvalidInput(reason, param=rows.param) from error


def left_out(rows: InputRows, survey: Survey, dataset: Dataset, *, lacking: str) -> tuple[str, ...]:
    """Log how many rows were left out, and return a sentence about them for the model's card, if there are any."""
    missing = survey.num_rows - len(dataset)
    if not missing:
        return ()
    logger.warning("%s: %d of %d rows are left out: they have no %s", rows.param, missing, survey.num_rows, lacking)
    return (f"{missing:,} of {survey.num_rows:,} rows have no {lacking} and were left out",)


def row_lengths(dataset: Dataset, column: str) -> list[int]:
    """Return the number of values in each row's list in a column."""
    lengths: list[int] = pyarrow.compute.list_value_length(dataset.data.column(column)).to_pylist()
    return lengths


def _write(path: Path, rows: InputRows, survey: Survey, prepare: Prepare) -> None:
    digest = hashlib.sha256()

    def hashed() -> Iterator[list[tuple[int, Record]]]:
        for batch in rows.batches():
            for _, record in batch:
                digest.update(_identity(record))
            yield batch

    writer: Any = None
    with path.open("wb") as out:
        for columns in prepare(hashed()):
            table = pyarrow.table(dict(columns), schema=None if writer is None else writer.schema)
            if writer is None:
                writer = _Writer(pyarrow.ipc.new_stream(out, table.schema), table.schema)
            writer.stream.write_table(table)
        if writer is not None:
            writer.stream.close()
    if writer is None:
        raise InvalidInput(f"{rows.param}: has no rows to train on", param=rows.param)
    if digest.hexdigest() != survey.digest:
        raise InvalidInput(f"{rows.param}: changed while it was read; submit the job again", param=rows.param)


@dataclass(frozen=True, slots=True)
class _Writer:
    stream: Any
    schema: Any


def _prune(folder: Path) -> None:
    """Delete prepared rows that were not used lately. Processes that have their file open can still read it."""
    oldest = time.time() - _KEPT_SECONDS
    for entry in folder.iterdir():
        try:
            if entry.stat().st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True)
        except FileNotFoundError:
            continue  # another training deleted it at the same time


def _identity(record: Record) -> bytes:
    options = orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(dict(record), default=_plain, option=options)


def _plain(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)
