"""Checks that a job's model, input and output can be used, counts its rows and divides them into chunks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial, reduce

from sqlalchemy import select
from sqlmodel import col

from jobs.access.joint_models import check_joint
from jobs.access.model_check import check_model, local_model
from jobs.access.model_files import read_json
from jobs.access.paths import check_replaces_no_input, resolve_output_path
from jobs.access.pins import Pins
from jobs.access.sentence_folder import check_vectors
from jobs.access.video_models import check_num_frames
from jobs.config.access_rules import AccessRules
from jobs.config.limits import limits_of
from jobs.config.projects import OPERATOR
from jobs.data.sources import ChunkRange, Source, check_columns, open_source
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState, SlotState
from jobs.db.tables import Slot
from jobs.errors import Conflict, InvalidInput, InvalidSpec, UserError
from jobs.ledger import jobs as job_ledger
from jobs.ledger import planning
from jobs.ledger.accounts.uploads import find_upload
from jobs.ledger.accounts.usage import too_many_rows
from jobs.ledger.job_pins import check_spec, pin_spec
from jobs.specs.inference import InferenceSpec, JobSpec, TrainingSpec, parse_spec
from jobs.specs.needs import Need, Needs
from jobs.specs.packages import needs_of_spec
from jobs.specs.parameters.media_tasks import VideoClassificationParameters
from jobs.specs.parameters.text_tasks import EmbeddingsParameters
from scheduler.control.planning.chunk_sizes import (
    SMALLEST_CHUNK_ROWS,
    collect_ranges,
    largest_chunk_rows,
    largest_media_bytes,
    may_have_media,
    merge_ranges,
)
from scheduler.control.planning.media_sizes import mean_media_bytes
from scheduler.control.planning.package_checks import check_needs, needs_of_sound
from scheduler.control.planning.training_checks import check_rows, check_source_job, check_training

logger = logging.getLogger(__name__)

MOST_FILES_CHECKED = 20
"""Number of input files whose columns are checked while the client waits; the planner checks all files."""
MOST_REQUESTED_CHUNKS = 1_000_000
"""Most chunks that `batching.chunk_rows` may ask for."""


def check_submission(
    spec: JobSpec,
    *,
    rules: AccessRules,
    store: Store,
    database: Database,
    project: str = OPERATOR,
    most_files: int | None = MOST_FILES_CHECKED,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Needs:
    """Make all checks of a spec that are cheap enough for a submission, so that a bad spec leaves nothing behind.

    Checks what the slots have, the model's files, the input's columns and first row, and the output's folder; counts no
    rows.

    Args:
        project: The project that owns the job.
        most_files: Number of input files, from the first, whose columns are checked; None for all.
        is_wanted: Called between files; False stops the check.

    Returns:
        What the job's slots must have.

    Raises:
        UserError: The model, the input, a column or the output cannot be used; the message names the field.
        ServiceUnavailable: A store or remote file cannot be reached, so the spec cannot be checked now.
        InterruptedError: `is_wanted` returned False.
    """
    needs = list(needs_of_spec(spec))
    check_needs(needs, database)
    check = partial(check_columns, most_files=most_files, is_wanted=is_wanted)
    if isinstance(spec, TrainingSpec):
        needs += check_training(spec, rules=rules, store=store, database=database, project=project, check_input=check)
    else:
        needs += _check_inference(spec, rules=rules, store=store, database=database, project=project, check_input=check)
    check_needs(needs, database)
    return reduce(Needs.together_with, (need.part for need in needs), Needs())


def _check_inference(
    spec: InferenceSpec,
    *,
    rules: AccessRules,
    store: Store,
    database: Database,
    project: str,
    check_input: Callable[..., None],
) -> Iterator[Need]:
    """Check the model, the input and the output of an inference job. Yields what the sound in its first row needs."""
    if not check_source_job(spec, database, project=project):
        check_model(spec.model, spec.task, rules)
        folder = local_model(spec.model, rules)
        if isinstance(spec.task_parameters, EmbeddingsParameters) and folder is not None:
            check_joint(folder, spec.task_parameters, name=spec.model, has_images=spec.has_alternative)
            check_vectors(folder, spec.task_parameters, name=spec.model)
        if isinstance(spec.task_parameters, VideoClassificationParameters) and folder is not None:
            config = read_json(folder / "config.json", name=spec.model)
            check_num_frames(config, spec.task_parameters.num_frames)
    source = open_input(spec, rules=rules, store=store, database=database, project=project)
    try:
        check_input(source, spec.input, spec.columns(), optional=spec.optional_inputs)
    except InvalidInput as error:
        if error.param == "input.columns.candidate_labels" and "candidate_labels" not in spec.input.columns:
            raise spec.no_labels() from error
        raise
    first = next(source.index(1))  # raises for an input without rows, such as a CSV file with only a header
    if "audio" in spec.columns():
        yield from needs_of_sound(source, first, param="input.columns.audio")
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
        needs = check_submission(
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
            planning.enqueue(db, job_id, pins=pins, needs=needs)
            logger.info("training %s is queued", job_id)
            return
        chunks = cut_input(spec, rules=rules, store=store, database=db, project=job.project, is_wanted=is_wanted)
        num_rows = planning.plan(db, job_id, chunks, pins=pins, needs=needs)
    except (Conflict, InterruptedError) as error:
        logger.info("stopped planning job %s: %s", job_id, error)
    except UserError as error:
        logger.info("cannot plan job %s: %s", job_id, error)
        job_ledger.fail(db, job_id, error)
    else:
        logger.info("job %s has %d rows", job_id, num_rows)


def cut_input(
    spec: InferenceSpec,
    *,
    rules: AccessRules,
    store: Store,
    database: Database,
    project: str,
    is_wanted: Callable[[], bool],
) -> Iterator[ChunkRange]:
    """Cut the input of a spec into chunks.

    Args:
        project: The project that owns the job.
        is_wanted: Called between chunks; False stops the cutting.

    Raises:
        UserError: The input cannot be read, or has more rows than the project's queue can hold.
        Conflict: `is_wanted` returned False.
    """
    source = open_input(spec, rules=rules, store=store, database=database, project=project)
    limit = limits_of(project, rules.projects).queued_rows

    def index(chunk_rows: int) -> Iterator[ChunkRange]:
        return _within_queue(_until_unwanted(source.index(chunk_rows), is_wanted), project, limit)

    chunk_rows = spec.batching.chunk_rows
    chunks = (
        _automatic_chunks(database, spec, source, index, rules=rules)
        if chunk_rows == "auto"
        else _limited(index(chunk_rows))
    )
    return _until_unwanted(chunks, is_wanted)


def _automatic_chunks(
    db: Database,
    spec: InferenceSpec,
    source: Source,
    index: Callable[[int], Iterator[ChunkRange]],
    *,
    rules: AccessRules,
) -> list[ChunkRange]:
    """Cut an input into chunks of a good size.

    Args:
        source: The input, from which some rows are read if they may have media.
        index: Cuts the input into ranges of a number of rows.
        rules: The access rules of the files that rows may name.
    """
    num_slots, has_gpu = _known_slots(db)
    has_images = spec.has_alternative
    largest = largest_chunk_rows(spec.task, has_gpu=has_gpu, has_images=has_images)
    ranges = collect_ranges(index(SMALLEST_CHUNK_ROWS), SMALLEST_CHUNK_ROWS)
    if may_have_media(spec.task, has_images=has_images):
        row_bytes = mean_media_bytes(source, ranges, rules)
        if row_bytes:
            largest = max(1, min(largest, int(largest_media_bytes(has_gpu=has_gpu) / row_bytes)))
    if largest < SMALLEST_CHUNK_ROWS:
        ranges = collect_ranges(index(largest), largest)
    return merge_ranges(ranges, num_slots=num_slots, largest=largest)


def _until_unwanted(ranges: Iterable[ChunkRange], is_wanted: Callable[[], bool]) -> Iterator[ChunkRange]:
    for item in ranges:
        if not is_wanted():
            raise Conflict("this scheduler is no longer the leader")
        yield item


def _within_queue(ranges: Iterable[ChunkRange], project: str, limit: int | None) -> Iterator[ChunkRange]:
    """Reject an input that could not be counted at submission and is too long for its project's whole queue."""
    for item in ranges:
        if limit is not None and item.stop_row > limit:
            raise too_many_rows(project, limit)
        yield item


def _limited(ranges: Iterable[ChunkRange]) -> Iterator[ChunkRange]:
    for number, item in enumerate(ranges):
        if number >= MOST_REQUESTED_CHUNKS:
            raise InvalidSpec(
                f"batching.chunk_rows: is too small: the input would have more than {MOST_REQUESTED_CHUNKS} chunks; "
                "increase it or leave it out",
                param="batching.chunk_rows",
            )
        yield item


def _known_slots(db: Database) -> tuple[int, bool]:
    """The number of online slots, and whether one of them has a GPU (one of all slots, if none is online)."""
    with db.read() as session:
        slots = session.execute(select(col(Slot.state), col(Slot.device))).all()
    online = [slot for slot in slots if slot.state == SlotState.ONLINE]
    return len(online), any(slot.device == "cuda" for slot in online or slots)
