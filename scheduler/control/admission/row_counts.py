"""How many rows a submission would add to its project's queue, counted before it is accepted if that is quick."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from jobs.config.access_rules import AccessRules
from jobs.config.limits import limits_of
from jobs.data.sources.formats.block_scan import INDEX_BLOCK_BYTES, Lines, scan
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.tables import Batch, StoredFile
from jobs.ledger.accounts.usage import RowsWanted, too_many_rows
from jobs.specs.inference import InferenceSpec, JobSpec
from scheduler.control.planning.planner import open_input

COUNT_SECONDS = 2.0
"""The longest time that a client waits for the count, enough for some million lines of a local file."""
_STEP_ROWS = 4096  # rows counted between two looks at the clock


def count_job_rows(
    spec: JobSpec, *, project: str, rules: AccessRules, store: Store, database: Database
) -> RowsWanted | None:
    """The rows that a job would add to the queue.

    Returns:
        The rows; None without counting if the project's queue has no limit, and for a training, which has no rows.

    Raises:
        TooManyRows: The job would not fit even into an empty queue.
        UserError: The input cannot be read.
    """
    limit = limits_of(project, rules.projects).queued_rows
    if limit is None or not isinstance(spec, InferenceSpec):
        return None
    source = open_input(spec, rules=rules, store=store, database=database, project=project)
    return _wanted((chunk.stop_row for chunk in source.index(_STEP_ROWS)), limit, project, param="input.path")


def count_batch_rows(
    file: StoredFile, retried: Batch | None, *, project: str, rules: AccessRules, store: Store
) -> RowsWanted | None:
    """The rows that a batch would add to the queue.

    Args:
        file: The input of the batch.
        retried: The earlier batch whose responses this one reuses.

    Returns:
        The rows; None without counting if the project's queue has no limit.

    Raises:
        TooManyRows: The batch would not fit even into an empty queue.
        NotFound: The file does not exist any more.
    """
    limit = limits_of(project, rules.projects).queued_rows
    if limit is None:
        return None
    num_reused = 0 if retried is None else retried.num_completed or 0
    return _wanted(_lines_so_far(store, file.key, num_reused), limit, project, param="input_file_id")


def _lines_so_far(store: Store, key: str, num_reused: int) -> Iterator[int]:
    num_lines = -num_reused
    with store.open(key) as handle:
        for block in scan(handle, Lines(), offset=0, line=1, block_bytes=INDEX_BLOCK_BYTES):
            num_lines += int(block.is_row.sum())
            yield num_lines


def _wanted(counts: Iterable[int], limit: int, project: str, *, param: str) -> RowsWanted:
    """The rows according to the last of increasing counts; an unknown number if counting takes too long."""
    give_up_at = time.monotonic() + COUNT_SECONDS
    num_rows = 0
    for num_rows in counts:
        if num_rows > limit:
            raise too_many_rows(project, limit, param=param)
        if time.monotonic() > give_up_at:
            return RowsWanted(limit, None)
    return RowsWanted(limit, max(0, num_rows))
