"""Submits the jobs of cron entries whose time has come."""

from __future__ import annotations

import logging

from jobs.config.catalogue import with_catalogue
from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import InvalidSpec, NotFound, StokerError, UserError
from jobs.ledger.groups import crons
from jobs.ledger.job_pins import stamp_spec
from jobs.specs.array_spec import parse_single
from jobs.specs.inference import JobSpec
from scheduler.control.admission.row_counts import count_job_rows
from scheduler.control.planning.planner import check_submission

logger = logging.getLogger(__name__)


def read_cron_spec(document: object) -> JobSpec:
    """Validate the spec of a cron entry.

    Raises:
        InvalidSpec: It is not valid, waits for something else than its schedule, or has a promise.
    """
    spec = _parse(document)
    if spec.promise is not None:
        message = "promise: cannot be used in a cron entry, whose jobs are not admitted before their time comes"
        raise InvalidSpec(message, param="promise")
    for name, is_set in (("after", bool(spec.after)), ("start_at", spec.start_at is not None)):
        if is_set:
            raise InvalidSpec(f"{name}: cannot be used in a cron entry, whose schedule says when it starts", param=name)
    return spec


def _parse(document: object) -> JobSpec:
    return parse_single(document, "cannot be used in a cron entry, which submits single jobs")


def fire_cron(db: Database, store: Store, settings: Settings, cron_id: str) -> None:
    """Submit the job of an entry, if it is still due. What a submission would refuse is kept as its error.

    If this is killed, the entry is still due or its job exists, never both.

    Raises:
        MachineError: A service could not be reached; try again later.
        QueueFull: The project's queue is full; try again later.
    """
    with db.read() as session:
        try:
            entry = crons.get(session, cron_id)
        except NotFound:
            return
        if entry.next_at > session.time():
            return
    try:
        # Not `read_cron_spec`: an entry that was accepted once fires, though it could not be added any more.
        spec = with_catalogue(_parse(entry.spec), settings.models)
        check_submission(spec, rules=settings, database=db, store=store, project=entry.project)
        pins = stamp_spec(spec, settings)
        wanted = count_job_rows(spec, project=entry.project, rules=settings, store=store, database=db)
        job_id = crons.fire(db, entry, spec, pins=pins, wanted=wanted)
    except UserError as error:
        if error.retryable:
            raise
        logger.warning("cron entry %s (%s) made no job: %s", entry.id, entry.name, error.message)
        crons.skip(db, entry, error.message)
    else:
        logger.info("cron entry %s (%s) submitted %s", entry.id, entry.name, job_id or "nothing")


def skip_cron(db: Database, cron_id: str, error: StokerError) -> None:
    """Let the scheduled time of an entry pass that could not be fired for too long."""
    with db.read() as session:
        try:
            entry = crons.get(session, cron_id)
        except NotFound:
            return
    crons.skip(db, entry, error.message)
