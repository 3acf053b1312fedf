"""Completes arrays. The artifacts of a sweep are those of the trial that won, and a table of all trials."""

from __future__ import annotations

import orjson

from jobs.data.store import Store
from jobs.data.store_keys import artifact_key
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Artifact, Job
from jobs.errors import ChildrenFailed
from jobs.ledger import jobs as job_ledger
from jobs.ledger.groups import arrays
from jobs.ledger.groups.arrays import Trial
from jobs.specs.array_spec import ArraySpec, parse_submission
from jobs.specs.sweep_spec import SweepField

TABLE = "sweep.json"
"""Name of the artifact with all trials."""


def finish_array(db: Database, store: Store, array: Job) -> None:
    """Complete a finalizing array. Repeats with the same result if it was interrupted.

    Raises:
        Conflict: Another finalizer was first.
        ServiceUnavailable: The store cannot be reached; try again later.
    """
    spec = parse_submission(array.spec)
    if not isinstance(spec, ArraySpec) or spec.sweep is None:
        return job_ledger.complete(db, array.id, [])
    mode, metric = spec.sweep.best_mode, spec.sweep.metric
    with db.read() as session:
        trials = arrays.trials(session, array, spec.sweep)
        winner = arrays.winner_of(trials, mode)
        made = [] if winner is None else job_ledger.artifacts(session, winner.job_id)
        now = session.time()
    if winner is None:
        job_ledger.fail(db, array.id, ChildrenFailed(f"sweep.metric: no trial has recorded '{metric}'"))
        return None
    table = store.put(artifact_key(array.id, TABLE), [_table(spec.sweep, trials, winner)])
    own = Artifact(
        job_id=array.id, name=TABLE, key=table.key, num_bytes=table.num_bytes, sha256=table.sha256, created_at=now
    )
    # The files stay those of the trial, which is kept as long as the sweep.
    copies = [Artifact(**{**artifact.model_dump(), "job_id": array.id}) for artifact in made if artifact.name != TABLE]
    return job_ledger.complete(db, array.id, [*copies, own])


def _table(sweep: SweepField, trials: list[Trial], winner: Trial) -> bytes:
    def row(trial: Trial) -> dict[str, object]:
        return {
            "index": trial.index,
            "job_id": trial.job_id,
            sweep.metric: trial.value,
            "values": trial.values,
            "pruned_step": trial.pruned_step,
        }

    completed = [row(trial) for trial in trials if trial.state == JobState.COMPLETED]
    document = {"metric": sweep.metric, "mode": sweep.best_mode, "winner": row(winner), "trials": completed}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)
