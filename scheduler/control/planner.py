"""Checks that a job's model, input and output can be used, counts its rows and divides them into chunks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from jobs.access.model_check import check_model, local_model
from jobs.access.paths import check_replaces_no_input, resolve_output_path
from jobs.access.pins import Pins
from jobs.access.sentence_folder import check_vectors
from jobs.config.access_rules import AccessRules
from jobs.config.limits import limits_of
from jobs.config.projects import OPERATOR
from jobs.data.sources import ChunkRange, Source, check_columns, open_source
from jobs.data.sources.media import MEDIA_INPUTS
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState, SlotState
from jobs.db.tables import Slot
from jobs.errors import Conflict, InvalidInput, InvalidSpec, UserError
from jobs.ledger import jobs as job_ledger
from jobs.ledger import planning
from jobs.ledger.job_pins import check_spec, pin_spec
from jobs.ledger.uploads import find_upload
from jobs.ledger.usage import too_many_rows
from jobs.specs.inference import InferenceSpec, JobSpec, TrainingSpec, parse_spec
from jobs.specs.parameters.text_tasks import EmbeddingsParameters
from jobs.specs.tasks import TASKS
from scheduler.control.training_checks import check_rows, check_source_job, check_training

logger = logging.getLogger(__name__)

SMALLEST_CHUNK_ROWS = 32
"""Fewest rows of a chunk, since fewer do not fill a batch. Inputs of unknown length are first cut into such chunks."""
LARGEST_CHUNK_ROWS_CPU = 128
LARGEST_CHUNK_ROWS_GPU = 2048
"""Most rows of a chunk: a few seconds of work at most, so that a lost slot loses little and a yield is quick."""
LARGEST_GENERATED_ROWS_CPU = 64
LARGEST_GENERATED_ROWS_GPU = 512
"""Most rows of a chunk if each row takes hundreds of forward passes: twice as many as are computed at once, so that
waiting rows replace those that finish."""
LARGEST_MEDIA_ROWS_CPU = 64
LARGEST_MEDIA_ROWS_GPU = 256
"""Most rows of a chunk of images, sounds or videos, since a runner holds the decoded rows of three chunks."""
LARGEST_CHUNK_BYTES = 32 * 2**20
"""Most input bytes of a chunk, if rows have byte offsets: a runner holds several chunks, and rows may be megabytes."""
CHUNKS_PER_SLOT = 4
"""Fewest chunks for each slot, if the input is long enough, so that slots of unequal speed finish at the same time."""
MOST_CHUNKS = 100_000
"""Most chunks of a plan, which is held in memory at about 600 bytes per chunk; longer inputs get larger chunks."""
MOST_FILES_LOOKED_AT = 20
"""Number of input files whose columns are checked while the client waits; the planner checks all files."""
MOST_CHUNKS_ASKED = 1_000_000
"""Most chunks that `batching.chunk_rows` may ask for."""

_FILE_FACTS = frozenset({"file", "format", "size", "stamp", "upload", "name"})


def check_submission(
    spec: JobSpec,
    *,
    rules: AccessRules,
    store: Store,
    database: Database,
    project: str = OPERATOR,
    most_files: int | None = MOST_FILES_LOOKED_AT,
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Make all checks of a spec that are cheap enough for a submission, so that a bad spec leaves nothing behind.

    Checks the model's files, the input's columns and first row, and the output's folder; counts no rows.

    Args:
        project: The project that owns the job.
        most_files: Number of input files, from the first, whose columns are checked; None for all.
        is_wanted: Called between files; False stops the check.

    Raises:
        UserError: The model, the input, a column or the output cannot be used; the message names the field.
        ServiceUnavailable: A store or remote file cannot be reached, so the spec cannot be checked now.
        InterruptedError: `is_wanted` returned False.
    """
    look = partial(check_columns, most_files=most_files, is_wanted=is_wanted)
    if isinstance(spec, TrainingSpec):
        return check_training(spec, rules=rules, store=store, database=database, project=project, look=look)
    if not check_source_job(spec, database, project=project):
        check_model(spec.model, spec.task, rules)
        folder = local_model(spec.model, rules)
        if isinstance(spec.task_parameters, EmbeddingsParameters) and folder is not None:
            check_vectors(folder, spec.task_parameters, name=spec.model)
    source = open_input(spec, rules=rules, store=store, database=database, project=project)
    try:
        look(source, spec.input, spec.columns(), optional=spec.optional_inputs)
    except InvalidInput as error:
        if error.param == "input.columns.candidate_labels" and "candidate_labels" not in spec.input.columns:
            raise spec.no_labels() from error
        raise
    next(source.index(1))  # raises for an input without rows, such as a CSV file with only a header
    if spec.output.path is not None:
        output = resolve_output_path(spec.output.path, rules)
        check_replaces_no_input(output, spec.input.paths, param="output.path")


def open_input(
    spec: InferenceSpec, *, rules: AccessRules, store: Store, database: Database, project: str = OPERATOR
) -> Source:
    """Open the source of a spec's rows. Only uploads that the project may see are found."""
    return open_source(
        spec.input,
        spec.columns(),
        rules=rules,
        store=store,
        find_upload=partial(find_upload, database, project=project),
        optional=spec.optional_inputs,
    )


def plan_job(
    db: Database, store: Store, rules: AccessRules, job_id: str, *, is_wanted: Callable[[], bool] = lambda: True
) -> None:
    """Move a validating job to `queued`, or to `failed` after a user error.

    If this is killed, the job stays validating, and the next call starts over.

    Args:
        is_wanted: Called between chunks; once it returns False, the job is left as it is.

    Raises:
        MachineError: A service could not be reached; try again later.
    """
    with db.read() as session:
        job = job_ledger.get(session, job_id)
    if job.state != JobState.VALIDATING:
        return
    try:
        spec = parse_spec(job.spec)
        submitted = None if job.pins is None else Pins.parse(job.pins)
        if submitted is not None:
            check_spec(spec, submitted, rules)  # checked first, so that only the files that were submitted are read
        check_submission(
            spec,
            rules=rules,
            store=store,
            database=db,
            project=job.project,
            most_files=None,
            is_wanted=is_wanted,
        )
        pins = pin_spec(spec, rules)
        if submitted is not None:
            check_spec(spec, submitted, rules)  # checked again, so that the digests are those of the submitted files
        if isinstance(spec, TrainingSpec):
            check_rows(spec, rules=rules, store=store, database=db, project=job.project, is_wanted=is_wanted)
            planning.enqueue(db, job_id, pins=pins)
            logger.info("training %s is queued", job_id)
            return
        source = open_input(spec, rules=rules, store=store, database=db, project=job.project)
        num_slots, has_gpu = _known_slots(db)
        largest = largest_chunk_rows(spec.task, has_gpu=has_gpu)
        asked = spec.batching.chunk_rows
        ranges = _until_unwanted(source.index(SMALLEST_CHUNK_ROWS if asked == "auto" else asked), is_wanted)
        ranges = _within_queue(ranges, job.project, limits_of(job.project, rules.projects).queued_rows)
        chunks = merge_ranges(ranges, num_slots=num_slots, largest=largest) if asked == "auto" else _limited(ranges)
        num_rows = planning.plan(db, job_id, _until_unwanted(chunks, is_wanted), pins=pins)
    except (Conflict, InterruptedError) as error:
        logger.info("planning of %s ended: %s", job_id, error)
    except UserError as error:
        logger.info("job %s cannot be planned: %s", job_id, error)
        job_ledger.fail(db, job_id, error)
    else:
        logger.info("job %s has %d rows", job_id, num_rows)


def largest_chunk_rows(task: str, *, has_gpu: bool) -> int:
    """The most rows of a chunk that takes a few seconds, or as near to that as the task allows."""
    if task == "text-generation":
        return LARGEST_GENERATED_ROWS_GPU if has_gpu else LARGEST_GENERATED_ROWS_CPU
    inputs = TASKS[task].inputs if task in TASKS else ()
    if not MEDIA_INPUTS.isdisjoint(inputs):
        return LARGEST_MEDIA_ROWS_GPU if has_gpu else LARGEST_MEDIA_ROWS_CPU
    return LARGEST_CHUNK_ROWS_GPU if has_gpu else LARGEST_CHUNK_ROWS_CPU


def chunk_rows_for(num_rows: int, *, num_slots: int, largest: int) -> int:
    """Number of rows of a chunk that keeps every slot busy to the end and still fills batches.

    Args:
        num_rows: Number of rows of the whole input.
        num_slots: Number of slots that could work on the job.
        largest: The most rows of a chunk, see `largest_chunk_rows`.
    """
    wanted = num_rows / (CHUNKS_PER_SLOT * max(1, num_slots))
    whole_grains = round(wanted / SMALLEST_CHUNK_ROWS) * SMALLEST_CHUNK_ROWS
    return max(SMALLEST_CHUNK_ROWS, min(largest, whole_grains), -(-num_rows // MOST_CHUNKS))


def merge_ranges(ranges: Iterable[ChunkRange], *, num_slots: int, largest: int) -> list[ChunkRange]:
    """Merge small consecutive ranges of one file into chunks of a good size.

    Holds at most `MOST_CHUNKS` ranges at a time: when there are more, all ranges so far are merged in pairs.

    Args:
        ranges: Ranges of at most `SMALLEST_CHUNK_ROWS` rows each, starting at row 0.
        num_slots: Number of slots, see `chunk_rows_for`.
        largest: The most rows of a chunk, see `largest_chunk_rows`.
    """
    grain = SMALLEST_CHUNK_ROWS
    merged: list[ChunkRange] = []
    for following in ranges:
        _append(merged, following, grain)
        if len(merged) > MOST_CHUNKS:
            grain *= 2
            merged = _coarsened(merged, grain)
    num_rows = merged[-1].stop_row if merged else 0
    return _coarsened(merged, chunk_rows_for(num_rows, num_slots=num_slots, largest=largest))


def _coarsened(ranges: Iterable[ChunkRange], chunk_rows: int) -> list[ChunkRange]:
    merged: list[ChunkRange] = []
    for following in ranges:
        _append(merged, following, chunk_rows)
    return merged


def _append(merged: list[ChunkRange], following: ChunkRange, chunk_rows: int) -> None:
    """Merge a range into the last one if both are in one file and within `chunk_rows` and `LARGEST_CHUNK_BYTES`."""
    last = merged[-1] if merged else None
    if (
        last is None
        or following.stop_row - last.start_row > chunk_rows
        or not _goes_on(last, following)
        or following.locator.get("offset", 0) - last.locator.get("offset", 0) > LARGEST_CHUNK_BYTES
    ):
        merged.append(following)
    else:
        merged[-1] = ChunkRange(last.start_row, following.stop_row, last.locator)


def _goes_on(last: ChunkRange, following: ChunkRange) -> bool:
    """Whether a range continues another one in the same file; an input may name the same file twice in a row."""
    before, after = last.locator, following.locator
    if any(before.get(fact) != after.get(fact) for fact in _FILE_FACTS):
        return False
    place_before, place_after = _place(before), _place(after)
    return place_after > place_before or (place_after == place_before and after["row"] == before["row"])


def _place(locator: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted((name, value) for name, value in locator.items() if name not in _FILE_FACTS and name != "row")


def _until_unwanted(ranges: Iterable[ChunkRange], is_wanted: Callable[[], bool]) -> Iterator[ChunkRange]:
    for item in ranges:
        if not is_wanted():
            raise Conflict("this scheduler does not lead any more")
        yield item


def _within_queue(ranges: Iterable[ChunkRange], project: str, limit: int | None) -> Iterator[ChunkRange]:
    """Reject an input that could not be counted at submission and is too long for its project's whole queue."""
    for item in ranges:
        if limit is not None and item.stop_row > limit:
            raise too_many_rows(project, limit)
        yield item


def _limited(ranges: Iterable[ChunkRange]) -> Iterator[ChunkRange]:
    for number, item in enumerate(ranges):
        if number >= MOST_CHUNKS_ASKED:
            raise InvalidSpec(
                f"batching.chunk_rows: would cut this input into more than {MOST_CHUNKS_ASKED} chunks; "
                "leave it out or make it larger",
                param="batching.chunk_rows",
            )
        yield item


def _known_slots(db: Database) -> tuple[int, bool]:
    """The number of online slots, and whether one of them has a GPU (one of all slots, if none is online)."""
    with db.read() as session:
        slots = session.execute(select(col(Slot.state), col(Slot.device))).all()
    online = [slot for slot in slots if slot.state == SlotState.ONLINE]
    return len(online), any(slot.device == "cuda" for slot in online or slots)
