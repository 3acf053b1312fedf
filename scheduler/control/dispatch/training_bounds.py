"""How long a training still keeps its slots at most: by its measured speed and its time limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from jobs.db.states import AttemptEnd
from jobs.db.tables import Attempt

_MARGIN = 1.1
"""The remaining time by the measured speed is multiplied by this, since evaluations and checkpoints are not spread
evenly over the steps."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the attempts of a training show."""

    num_preemptions: int = 0
    seconds_per_step: float | None = None
    """Seconds per step of the latest attempt that completed a step, its start included; None if there is none."""

    def remaining_seconds(
        self, *, num_steps: int, num_done: int, deadline_at: float | None, now: float
    ) -> float | None:
        """The most seconds that the training still runs once it has its slots; None if unknown.

        Args:
            num_steps: Its total number of steps; 0 if unknown.
            num_done: Number of completed steps.
            deadline_at: When its time limit ends it; None if it has none.
        """
        bounds = [] if deadline_at is None else [max(0.0, deadline_at - now)]
        if num_steps and self.seconds_per_step is not None:
            bounds.append(max(0, num_steps - num_done) * self.seconds_per_step * _MARGIN)
        return min(bounds, default=None)


def progress(session: Session, training_ids: Sequence[str], now: float) -> dict[str, Progress]:
    """The progress of trainings by job id; those without attempts are missing."""
    if not training_ids:
        return {}
    columns: list[Any] = [
        col(Attempt.job_id), col(Attempt.end), col(Attempt.started_at), col(Attempt.ended_at),
        col(Attempt.resumed_step), col(Attempt.last_step),
    ]  # fmt: skip
    rows = session.execute(
        select(*columns).where(col(Attempt.job_id).in_(training_ids)).order_by(col(Attempt.job_id), col(Attempt.number))
    )
    found: dict[str, Progress] = {}
    for row in rows:
        before = found.get(row.job_id, Progress())
        num_steps = row.last_step - row.resumed_step
        elapsed = (now if row.ended_at is None else row.ended_at) - row.started_at
        found[row.job_id] = Progress(
            before.num_preemptions + (row.end == AttemptEnd.PREEMPTED),
            elapsed / num_steps if num_steps > 0 else before.seconds_per_step,
        )
    return found
