"""Finishes a job after its last chunk: merges its outputs in row order, delivers them, and completes the job."""

from __future__ import annotations

import logging

from jobs.access.paths import resolve_output_path
from jobs.config.access_rules import AccessRules
from jobs.data.sinks import open_sink
from jobs.data.sinks.export import deliver_output
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Artifact
from jobs.errors import Conflict, UserError
from jobs.ledger import jobs as job_ledger
from jobs.specs.array_spec import ARRAY
from jobs.specs.inference import TrainingSpec, parse_spec
from scheduler.control.sweep_winner import finish_array

logger = logging.getLogger(__name__)


def finalize_job(db: Database, store: Store, rules: AccessRules, job_id: str) -> None:
    """Move a finalizing job to `completed`, or to `failed` after a user error (an output that cannot be written).

    Each step replaces what an earlier, interrupted run of it left, so that this can be repeated at any point.

    Raises:
        MachineError: The store, the disk or the database is away or full; try again later.
        StokerError: A result is missing, so that a retry cannot help.
    """
    with db.read() as session:
        job = job_ledger.get(session, job_id)
    if job.state != JobState.FINALIZING:
        return
    if job.kind == ARRAY:  # its children have the results
        return finish_array(db, store, job)
    try:
        spec = parse_spec(job.spec)
        if isinstance(spec, TrainingSpec):  # its artifacts were recorded with its last step
            return job_ledger.complete(db, job_id, [])
        sink = open_sink(spec.output, vector_output=spec.vector_output, database=db, store=store)
        made = sink.merge(job_id)
        if spec.output.path is not None:
            path = resolve_output_path(spec.output.path, rules)
            for item in made:
                deliver_output(path, store, item.stored.key)
        with db.read() as session:
            now = session.time()
        artifacts = [
            Artifact(
                job_id=job_id,
                name=item.name,
                key=item.stored.key,
                num_bytes=item.stored.num_bytes,
                sha256=item.stored.sha256,
                created_at=now,
            )
            for item in made
        ]
        job_ledger.complete(db, job_id, artifacts)
    except Conflict as error:
        logger.info("stopped finalizing job %s: %s", job_id, error)
    except UserError as error:
        logger.info("cannot finalize job %s: %s", job_id, error)
        hint = f"{error.message}; fetch the recorded results with `stoker results {job_id} --output FILE`"
        job_ledger.fail(db, job_id, type(error)(hint, param=error.param))
    else:
        logger.info("job %s is completed", job_id)
