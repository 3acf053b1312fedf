"""What a training made, as artifacts: its model and card, its summary, its curves over all attempts."""

from __future__ import annotations

import logging
from pathlib import Path

import orjson

from jobs import training
from jobs.database import Database
from jobs.leases import WorkingLease
from jobs.store import Store, lease_artifact_prefix
from jobs.tables import Artifact
from worker.training.curves import write_curves
from worker.training.reports import Finished

logger = logging.getLogger(__name__)


def record_outcome(lease: WorkingLease, finished: Finished, *, database: Database, store: Store) -> None:
    """Put everything into the store, then make it the job's in one fenced transaction.

    Raises:
        LostLease: the lease is not active any more; the files are nobody's, and go with the job.
        ServiceUnavailable: the store or the database cannot be reached.
    """
    folder = Path(finished.folder)
    with database.read() as session:
        now = database.time(session)
        points = [(metric.step, metric.name, metric.value) for metric in training.metrics(session, lease.job_id)]
    with (folder / "metrics.jsonl").open("wb") as out:
        for step, name, value in points:
            out.write(orjson.dumps({"step": step, "name": name, "value": value}) + b"\n")
    write_curves(folder, [(step, name, value) for step, name, value in points if value is not None])
    prefix = lease_artifact_prefix(lease.job_id, lease.lease_id)
    made = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            stored = store.put_file(f"{prefix}{name}", path)
            made.append(
                Artifact(
                    job_id=lease.job_id,
                    name=name,
                    key=stored.key,
                    num_bytes=stored.num_bytes,
                    sha256=stored.sha256,
                    created_at=now,
                )
            )
    training.finish(database, lease.lease_id, made, step=finished.step)
    logger.info("training is done after %d steps: %d artifacts", finished.step, len(made))
