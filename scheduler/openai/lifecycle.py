"""The life of a batch: split a new one into jobs, and write the output files once its jobs have ended."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import orjson

from jobs.access.model_check import check_model
from jobs.config import catalogue
from jobs.config.access_rules import AccessRules
from jobs.config.catalogue import CatalogueModel
from jobs.config.limits import limits_of
from jobs.config.times import DAY_SECONDS, RetentionTimes
from jobs.data.store import Store
from jobs.data.store_keys import batch_prefix, upload_key
from jobs.db.database import Database
from jobs.db.states import BatchState, JobState
from jobs.db.tables import Batch, Job
from jobs.errors import Conflict, NotFound, StokerError, UserError
from jobs.ledger import jobs as job_ledger
from jobs.ledger.accounts.uploads import find_upload
from jobs.ledger.groups import batch_ends, batches
from jobs.ledger.groups.batch_ends import BatchOutcome
from jobs.ledger.groups.batches import BatchCounts
from jobs.ledger.job_pins import stamp_spec
from scheduler.openai.intake import BadBatch, Intake
from scheduler.openai.output_lines import output_lines

logger = logging.getLogger(__name__)


def read_batch(
    db: Database, store: Store, rules: AccessRules, batch_id: str, *, is_wanted: Callable[[], bool] = lambda: True
) -> None:
    """Move a validating batch to `in_progress`, or to `failed` if lines are invalid.

    If killed midway, the batch stays validating, and the next call starts over.

    Args:
        is_wanted: Called now and then; when it returns False, the batch is left unchanged.

    Raises:
        MachineError: The store or the database cannot be reached; try again later.
    """
    with db.read() as session:
        batch = batches.get(session, batch_id)
    if batch.state != BatchState.VALIDATING:
        return

    def find_model(name: str, task: str) -> CatalogueModel:
        model = catalogue.resolve(name, rules.models, task=task, any_model=rules.any_model)
        check_model(model.model, task, rules)
        return model

    intake = Intake(
        store,
        batch_id,
        batch.endpoint,
        find_model=find_model,
        find_file=partial(find_upload, db, project=batch.project),
        stamp=partial(stamp_spec, rules=rules),
        max_lines=rules.batch_lines,
        max_line_bytes=rules.max_row_bytes,
        max_rows=limits_of(batch.project, rules.projects).queued_rows,
        is_wanted=is_wanted,
    )
    try:
        with store.open(find_upload(db, batch.input_file_id).key) as file:
            plan = intake.read(file, _earlier_output(db, store, batch))
        batches.accept(db, batch_id, plan)
    except BadBatch as bad:
        logger.info("batch %s has %d invalid lines", batch_id, len(bad.errors))
        batches.reject(db, batch_id, bad.errors)
    except InterruptedError as error:
        logger.info("stopped reading batch %s: %s", batch_id, error)
    except Conflict as error:
        logger.info("stopped reading batch %s: %s", batch_id, error)
        for key in store.list(intake.folder):
            store.delete(key)
    except UserError as error:
        reject_batch(db, batch_id, error)
    else:
        logger.info("batch %s has %d lines in %d jobs", batch_id, plan.num_lines, len(plan.parts))
        for key in store.list(batch_prefix(batch_id)):
            if not key.startswith(intake.folder):  # left by an interrupted run
                store.delete(key)


def finish_batch(db: Database, store: Store, retention: RetentionTimes, batch_id: str) -> None:
    """Write the output files of a batch whose jobs have ended, and end it; a cancelled batch's jobs are ended first.

    Each step replaces what an interrupted run left, so it can be repeated at any point.

    Raises:
        MachineError: The store or the database is unreachable or full; try again later.
    """
    with db.read() as session:
        state, jobs = batches.get(session, batch_id).state, batches.jobs_of(session, batch_id)
    if state == BatchState.CANCELLING:
        for job in jobs:
            with contextlib.suppress(Conflict):  # it has ended
                job_ledger.cancel(db, job.id)
        with db.read() as session:
            jobs = batches.jobs_of(session, batch_id)
    if any(not job.state.is_terminal for job in jobs):
        return
    try:
        batch = batch_ends.begin_finalizing(db, batch_id)
        outcome = _write_files(db, store, batch, jobs)
        batch_ends.end(db, batch_id, outcome, default_seconds=retention.upload_days * DAY_SECONDS)
    except Conflict as error:
        logger.info("stopped finishing batch %s: %s", batch_id, error)
        return
    _drop_rows(db, store, batch_id)
    logger.info("batch %s is %s", batch_id, outcome.state)


def abort_batch(db: Database, batch_id: str, error: StokerError) -> None:
    """End a batch whose output files cannot be written, so that clients stop waiting. Its jobs' results stay."""
    with db.read() as session:
        batch = batches.get(session, batch_id)
        done = batches.counts(session, batch)
    state = BatchState.CANCELLED if batch.state == BatchState.CANCELLING else BatchState.FAILED
    details = {"code": error.code, "message": error.message, "line": None, "param": None}
    with contextlib.suppress(Conflict):  # another scheduler may be able to write them
        batch_ends.end(db, batch_id, BatchOutcome(state, done, None, None, errors=[details]), default_seconds=0.0)


def reject_batch(db: Database, batch_id: str, error: StokerError) -> None:
    """Fail a validating batch that cannot be read; a batch in a later state is left to the next try."""
    with contextlib.suppress(Conflict):
        batches.reject(
            db, batch_id, [{"code": error.code, "message": error.message, "line": None, "param": error.param}]
        )


def _earlier_output(db: Database, store: Store, batch: Batch) -> Iterator[Mapping[str, Any]]:
    """The lines of the output file of the batch that this one retries."""
    if batch.retry_of is None:
        return
    with db.read() as session:
        retried = batches.get(session, batch.retry_of)
    if retried.output_file_id is None:
        return
    try:
        output = find_upload(db, retried.output_file_id)
    except NotFound as error:
        raise NotFound(f"retry_of: the output file of batch {retried.id} was deleted", param="retry_of") from error
    with store.open(output.key) as file:
        for line in file:
            yield orjson.loads(line)


def _write_files(db: Database, store: Store, batch: Batch, jobs: list[Job]) -> BatchOutcome:
    """Write both files in one pass over the output lines."""
    output_key, errors_key = upload_key(batch.output_file_id or ""), upload_key(batch.error_file_id or "")
    completed = failed = not_run = input_tokens = output_tokens = 0
    with store.create(output_key) as output, store.create(errors_key) as errors_file:
        for line in output_lines(db, store, batch, jobs, unfinished=True):
            (output if line.succeeded else errors_file).write(line.text)
            completed += line.succeeded
            failed += line.ran and not line.succeeded
            not_run += not line.ran
            input_tokens += line.input_tokens
            output_tokens += line.output_tokens
    if not completed:
        store.delete(output_key)
    if not failed + not_run:
        store.delete(errors_key)
    broken = [job for job in jobs if job.state == JobState.FAILED]
    state = _end_state(batch, jobs, nothing_done=not completed)
    job_errors = [_job_error(job) for job in broken] if state != BatchState.CANCELLED else []
    if state in (BatchState.COMPLETED, BatchState.FAILED):
        failed += not_run  # lines of a failed job; an expired or cancelled line did not fail
    return BatchOutcome(
        state,
        BatchCounts(batch.num_lines, completed, failed),
        output.stored if completed else None,
        errors_file.stored if errors_file.tell() else None,
        input_tokens,
        output_tokens,
        job_errors,
    )


def _end_state(batch: Batch, jobs: list[Job], *, nothing_done: bool) -> BatchState:
    if batch.state == BatchState.CANCELLING:
        return BatchState.CANCELLED
    if any(job.state == JobState.EXPIRED for job in jobs):
        return BatchState.EXPIRED
    if nothing_done and jobs and all(job.state == JobState.FAILED for job in jobs):
        return BatchState.FAILED
    return BatchState.COMPLETED


def _job_error(job: Job) -> dict[str, Any]:
    return {"code": job.error_code, "message": job.error_message, "line": None, "param": "model"}


def _drop_rows(db: Database, store: Store, batch_id: str) -> None:
    """Delete the jobs' inputs, which are no longer needed. Remains after a kill are removed like old uploads."""
    for key in list(store.list(batch_prefix(batch_id))):
        store.delete(key)
    batch_ends.forget_rows(db, batch_id)
