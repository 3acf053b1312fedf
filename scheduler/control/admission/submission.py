"""A checked spec that is not a job yet: how large it is, and how fast it would be."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import exists, select
from sqlmodel import Session, col

from jobs.config.access_rules import AccessRules
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import LIVE_JOB_STATES
from jobs.db.tables import Job
from jobs.db.transaction import Transaction
from jobs.errors import Conflict
from jobs.ledger.timing import speeds
from jobs.ledger.timing.workloads import Workload
from jobs.specs.fields import parse_time
from jobs.specs.inference import InferenceSpec, JobSpec, dependencies
from jobs.specs.needs import Needs
from scheduler.control.admission.row_counts import COUNT_SECONDS
from scheduler.control.forecast_state import keys_of
from scheduler.control.planning.planner import cut_input
from scheduler.forecast.estimates import Estimate, estimate
from scheduler.policy.types import SlotFacts


@dataclass(frozen=True, slots=True)
class Size:
    """How much work a spec describes."""

    num_rows: int | None
    """Number of rows, or of steps of a training; None if counting takes too long, or only a run can tell."""
    num_chunks: int | None
    """Number of chunks; None if unknown, and for a training."""
    chunk_rows: float = 1.0


@dataclass(frozen=True, slots=True)
class Submission:
    """A spec that was checked, and its size."""

    spec: JobSpec
    project: str
    workload: Workload
    needs: Needs
    """What its slots must have."""
    size: Size

    @property
    def gang_size(self) -> int:
        """Number of slots that it needs at once."""
        return 1 if isinstance(self.spec, InferenceSpec) else self.spec.slots

    @property
    def max_slots(self) -> int | None:
        """Most slots that an inference job may hold."""
        return self.spec.slots.max if isinstance(self.spec, InferenceSpec) else None

    def comes_later(self, session: Transaction) -> bool:
        """Whether it would have to wait for a time or for a job that has not ended, so that it is not ready now."""
        named = (col(Job.id).in_(dependencies(self.spec)), col(Job.state).in_(LIVE_JOB_STATES))
        starts_later = self.spec.start_at is not None and parse_time(self.spec.start_at) > session.time()
        return starts_later or bool(session.scalar(select(exists().where(*named))))

    def estimates(self, session: Session, slots: Sequence[SlotFacts]) -> dict[str, Estimate]:
        """Its speed on each kind of device; empty if equal work was never measured."""
        is_elastic = isinstance(self.spec, InferenceSpec)
        keys = keys_of(self.workload, slots, gang_size=self.gang_size, is_elastic=is_elastic)
        return estimate(keys, speeds.of_models(session, [self.workload.model]))


def measure_size(spec: JobSpec, *, rules: AccessRules, store: Store, database: Database, project: str) -> Size:
    """Count the rows and chunks of a spec that was checked, for two seconds at most.

    Raises:
        UserError: The input cannot be read.
    """
    if not isinstance(spec, InferenceSpec):
        max_steps = spec.training_arguments.max_steps or 0
        return Size(max_steps if max_steps > 0 else None, None)
    give_up_at = time.monotonic() + COUNT_SECONDS
    try:
        chunks = list(
            cut_input(
                spec, rules=rules, store=store, database=database, project=project,
                is_wanted=lambda: time.monotonic() < give_up_at,
            )
        )  # fmt: skip
    except Conflict:  # it takes too long
        return Size(None, None)
    return Size(chunks[-1].stop_row, len(chunks), float(chunks[0].stop_row))
