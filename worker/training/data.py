"""The rows of a training: read once, checked, turned into what the model learns from, kept by their content's hash."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from datasets import Dataset, load_from_disk

from jobs.database import Database
from jobs.errors import InvalidInput
from jobs.settings import Settings
from jobs.sources import open_source
from jobs.spec_fields import InputSpec
from jobs.store import Store
from jobs.uploads import find_upload

logger = logging.getLogger(__name__)

_READ_ROWS = 1000

Record = dict[str, Any]
"""A row by the task's own names."""


def read_records(rows: InputSpec, columns: Mapping[str, str], settings: Settings, *, param: str) -> list[Record]:
    """All rows of an input.

    Args:
        rows: where they are.
        columns: the task's input name -> the user's column.
        settings: of this process.
        param: the field of the spec, for an error.

    Raises:
        InvalidInput: a row cannot be used; the message names its line.
    """
    database = Database(settings.resolved_database_url)
    try:
        source = open_source(
            rows,
            columns,
            settings=settings,
            store=Store(settings.resolved_store_url),
            find_upload=partial(find_upload, database),
        )
        records: list[Record] = []
        for part in source.index(_READ_ROWS):
            for row in source.read(part.start_row, part.stop_row, part.locator):
                if row.error is not None:
                    line = "" if row.error.line is None else f", line {row.error.line}"
                    raise InvalidInput(f"{param}: row {row.row_index}{line}: {row.error.message}", param=param)
                records.append(dict(row.values))
        return records
    finally:
        database.close()


def label_names(records: Sequence[Record], label: str, known: Mapping[str, int]) -> list[str]:
    """The classes, by their ids.

    Args:
        records: rows to learn from.
        label: the input that holds a class, or a list of them.
        known: a pretrained model's own `label2id`; taken where it has all classes.
    """
    found: set[str] = set()
    for record in records:
        value = record[label]
        found.update(map(str, value) if isinstance(value, list) else [str(value)])
    if found <= known.keys():
        return sorted(known, key=lambda name: known[name])
    if all(name.lstrip("-").isdigit() for name in found):
        return sorted(found, key=int)
    return sorted(found)


def prepared(
    records: Sequence[Record],
    prepare: Callable[[Sequence[Record]], Dataset],
    *,
    recipe: Mapping[str, Any],
    cache: str | None,
) -> Dataset:
    """What `prepare` makes of rows, kept in the cache's folder by the hash of the rows and of the recipe.

    Args:
        records: the rows.
        prepare: tokenizes them, say.
        recipe: all else that the result depends on, as JSON values.
        cache: a folder that outlives the attempt; None: nothing is kept.
    """
    if cache is None:
        return prepare(records)
    digest = hashlib.sha256(orjson.dumps(recipe, option=orjson.OPT_SORT_KEYS))
    for record in records:
        digest.update(orjson.dumps(record, default=repr, option=orjson.OPT_SERIALIZE_NUMPY))
    kept = Path(cache) / digest.hexdigest()
    if not kept.is_dir():
        aside = Path(cache) / f".{kept.name}-{secrets.token_hex(6)}"
        prepare(records).save_to_disk(aside)
        try:
            aside.rename(kept)
        except OSError:
            shutil.rmtree(aside)  # another training was first with the same rows
            if not kept.is_dir():
                raise
    else:
        logger.info("%d rows were prepared before", len(records))
        os.utime(kept)
    loaded = load_from_disk(str(kept))
    assert isinstance(loaded, Dataset)
    return loaded
