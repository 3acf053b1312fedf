"""Ends trials of a sweep early, in the transaction that records the metric by which it is decided.

A trial is compared with those that came to the same number of steps before it. The order in which transactions lock the
sweep is that order, and what was compared is recorded: an attempt that computes the steps again is not compared again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from sqlalchemy import select, update
from sqlmodel import col

from jobs.db.tables import Job, Lease, Rung
from jobs.db.transaction import Transaction
from jobs.ledger import families
from jobs.specs.array_spec import SWEEP
from jobs.specs.sweep_spec import EarlyStoppingField, SweepField


def prune(
    tx: Transaction, lease: Lease, sweep_id: str, points: Sequence[tuple[int, str, float]], *, total_steps: int
) -> bool:
    """Compare a trial with the others of its sweep, if its latest metrics call for it.

    Args:
        lease: The trial's lease. Its job's row is locked, and its sweep's is not.
        points: Metrics as (step, name, value) that this transaction records.
        total_steps: Number of steps of the trial.

    Returns:
        Whether the trial ends early by this decision.
    """
    spec = tx.scalars(select(col(Job.spec)).where(col(Job.id) == sweep_id)).one()
    if spec[SWEEP].get("early_stopping") is None:
        return False
    sweep = SweepField.model_validate(spec[SWEEP])
    assert sweep.early_stopping is not None
    recorded = sorted((step, value) for step, name, value in points if name == sweep.metric and step < total_steps)
    compared = set(tx.scalars(select(col(Rung.step)).where(col(Rung.job_id) == lease.job_id)))
    for number in itertools.count():
        rung = sweep.early_stopping.rung(number)
        first = next(((step, value) for step, value in recorded if step >= rung), None)
        if first is None:
            return False
        if rung not in compared and not _goes_on(tx, lease, sweep_id, sweep, sweep.early_stopping, rung, *first):
            return True
    raise AssertionError("there is a comparison after the last step")


def _goes_on(
    tx: Transaction,
    lease: Lease,
    sweep_id: str,
    sweep: SweepField,
    rule: EarlyStoppingField,
    rung: int,
    step: int,
    measured: float,
) -> bool:
    """Record the comparison of a trial at a number of steps; returns whether it goes on."""
    others = _others(tx, lease.job_id, sweep_id, rung)
    value = measured if math.isfinite(measured) else None
    tx.add(Rung(sweep_id=sweep_id, step=rung, job_id=lease.job_id, value=value))
    if rule.goes_on(value, others, sweep.best_mode):
        return True
    tx.execute(update(Job).where(col(Job.id) == lease.job_id).values(pruned_step=step))
    reason = (
        f"its {sweep.metric} at step {step} is not among the best {rule.num_best(len(others) + 1)} of the "
        f"{len(others) + 1} trials that came to step {rung}"
    )
    tx.record(lease.job_id, "job.pruned", lease=lease.id, step=step, rung=rung, value=value, reason=reason)
    return False


def _others(tx: Transaction, job_id: str, sweep_id: str, rung: int) -> list[float | None]:
    """Lock the sweep, and read the values of its other trials that came to a number of steps.

    If the sweep was retried, this includes the trials before it. Of the runs of one trial, the latest counts.
    """
    family = [sweep_id, *(before.id for before in families.retried(tx, families.lock_array(tx, sweep_id)))]
    came = (
        select(col(Job.child_index), col(Rung.value))
        .join(Job, col(Job.id) == col(Rung.job_id))
        .where(col(Rung.sweep_id).in_(family), col(Rung.step) == rung)
        .order_by(col(Job.created_at), col(Job.id))
    )
    values = {row.child_index: row.value for row in tx.execute(came)}
    values.pop(tx.get_one(Job, job_id).child_index, None)
    return list(values.values())
