"""Records the artifacts of a training: the model and its card, the summary, and the curves of all attempts."""

from __future__ import annotations

import logging
from pathlib import Path

import orjson

from jobs.data.store import Store
from jobs.data.store_keys import lease_artifact_prefix
from jobs.db.database import Database
from jobs.db.tables import Artifact
from jobs.errors import NotKept
from jobs.ledger import attempts
from jobs.ledger.leasing.leases import WorkingLease
from jobs.messages import reason
from worker.training.attempt.checkpoint_upload import put_folder
from worker.training.reports import Finished
from worker.training.results.curves import write_curves

logger = logging.getLogger(__name__)


def record_artifacts(lease: WorkingLease, finished: Finished, *, database: Database, store: Store) -> None:
    """Copy the artifacts into the store, then record them and finish the job in one fenced transaction.

    Raises:
        LostLease: The lease is no longer active. The copied files belong to no artifact; they are deleted with the job.
        NotKept: The store rejects a file.
        ServiceUnavailable: The database cannot be reached.
    """
    folder = Path(finished.folder)
    with database.read() as session:
        now = session.time()
        points = [(metric.step, metric.name, metric.value) for metric in attempts.metrics(session, lease.job_id)]
    try:
        with (folder / "metrics.jsonl").open("wb") as out:
            for step, name, value in points:
                out.write(orjson.dumps({"step": step, "name": name, "value": value}) + b"\n")
        write_curves(folder, [(step, name, value) for step, name, value in points if value is not None])
    except OSError as error:
        raise NotKept(f"the training's metrics could not be written: {reason(error)}") from error
    prefix = lease_artifact_prefix(lease.job_id, lease.lease_id)
    made = [
        Artifact(
            job_id=lease.job_id,
            name=stored.key.removeprefix(prefix),
            key=stored.key,
            num_bytes=stored.num_bytes,
            sha256=stored.sha256,
            created_at=now,
        )
        for stored in put_folder(store, prefix, folder, what="the training's artifacts")
    ]
    attempts.finish(database, lease.lease_id, made, step=finished.step)
    logger.info("training is done after %d steps: %d artifacts", finished.step, len(made))
