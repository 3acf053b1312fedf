"""The values of an array's children, from its spec or from a file, which is copied once into the store."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import orjson

from jobs.config.access_rules import AccessRules
from jobs.data.sources import check_columns, open_source
from jobs.data.store import Store
from jobs.data.store_keys import array_values_key
from jobs.db.database import Database
from jobs.errors import InvalidInput, InvalidSpec
from jobs.ledger.accounts.uploads import find_upload
from jobs.specs.array_spec import MOST_CHILDREN, ArraySpec, Value
from jobs.specs.fields import InputSpec

PARAM = "array.file"
_STEP_ROWS = 1000  # rows read between two calls of `is_wanted`
_COLUMN = re.compile(r"input\.columns\.[^:]*")


def read_file(
    spec: ArraySpec, *, rules: AccessRules, store: Store, database: Database, project: str
) -> Iterator[Mapping[str, Value]]:
    """Yield the values in the file of an array, one mapping for each row, with the names that the template uses.

    Raises:
        InvalidInput: The file cannot be read, lacks a column, or has a value that is no text, number or boolean.
        ServiceUnavailable: The file cannot be reached now.
    """
    rows = InputSpec(path=spec.file or "", format="auto" if spec.array is None else spec.array.format)
    columns = {name: name for name in sorted(spec.names)}
    with _naming_array():
        find = partial(find_upload, database, project=project)
        source = open_source(rows, columns, rules=rules, store=store, find_upload=find)
        check_columns(source, rows, columns)
        for part in source.index(_STEP_ROWS):
            for row in source.read(part.start_row, part.stop_row, part.locator):
                if row.error is not None:
                    raise InvalidInput(f"{PARAM}: row {row.row_index}: {row.error.message}", param=PARAM)
                yield _checked(row.row_index, row.values)


def copy_file(
    spec: ArraySpec,
    job_id: str,
    *,
    rules: AccessRules,
    store: Store,
    database: Database,
    project: str,
    is_wanted: Callable[[], bool],
) -> int:
    """Copy the values in an array's file into the store, so that its children do not depend on the file any more.

    Returns:
        The number of children.

    Raises:
        InvalidInput: See `read_file`; also if there are too many rows.
        InterruptedError: `is_wanted` returned False.
    """
    number = 0
    with store.create(array_values_key(job_id)) as draft, io.BufferedWriter(draft, 2**16) as lines:
        for values in read_file(spec, rules=rules, store=store, database=database, project=project):
            if number % _STEP_ROWS == 0 and not is_wanted():
                raise InterruptedError("this scheduler is no longer the leader")
            number += 1
            if number > MOST_CHILDREN:
                raise InvalidInput(f"{PARAM}: has more than {MOST_CHILDREN} rows", param=PARAM)
            lines.write(orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE))
    return number


def copy_retried(job_id: str, retried_id: str, store: Store) -> int | None:
    """Copy the values of the array that this one retries. Returns their number; None if they are no longer kept."""
    key = array_values_key(retried_id)
    if not store.exists(key):
        return None
    number = 0
    with store.open(key) as source, store.create(array_values_key(job_id)) as draft:
        for line in source:
            number += 1
            draft.write(line)
    return number


def has_values(spec: ArraySpec, job_id: str, store: Store) -> bool:
    """Whether `values_from` can be called: the values are in the spec, or their copy is kept."""
    return spec.file is None or store.exists(array_values_key(job_id))


def values_from(spec: ArraySpec, job_id: str, store: Store, start: int) -> Iterator[tuple[int, Mapping[str, Value]]]:
    """Yield index and values of the children of a planned array, from one of them on.

    Raises:
        ServiceUnavailable: The store cannot be reached.
    """
    if spec.file is None:
        yield from enumerate(spec.listed(start), start)
        return
    with store.open(array_values_key(job_id)) as lines:
        for index, line in enumerate(islice(lines, start, None), start):
            yield index, orjson.loads(line)


@contextmanager
def _naming_array() -> Iterator[None]:
    """Make errors inside the block name `array.file` instead of `input.*`."""
    try:
        yield
    except (InvalidInput, InvalidSpec) as error:
        message = _COLUMN.sub(PARAM, error.message.replace("input.path", PARAM))
        raise type(error)(message.replace("input.format", "array.format"), param=PARAM) from error


def _checked(row_index: int, values: Mapping[str, Any]) -> dict[str, Value]:
    for name, value in values.items():
        if not isinstance(value, str | int | float | bool):
            raise InvalidInput(f"{PARAM}: row {row_index}: '{name}' must be a text, a number or a boolean", param=PARAM)
    return dict(values)
