"""How fast equal work was and how long its model took to load, for many workloads at once: one query for a decision."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from jobs.db.tables import Job, SpeedRecord
from jobs.ledger.timing.speeds import Unit
from jobs.ledger.timing.workloads import Workload


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured of a workload."""

    rows_per_second: Mapping[str, float] = field(default_factory=dict)
    """Kind of device -> rows per second of one slot."""
    loading_seconds: Mapping[str, float] = field(default_factory=dict)
    """Kind of device -> seconds in which a slot loads the model."""

    def work_seconds(self, num_rows: int, kinds: Sequence[str]) -> float | None:
        """Slot-seconds that rows take, or None if that is unknown.

        Args:
            kinds: The kinds of the slots that work on them; if there are none yet, the fastest kind counts.
        """
        if not self.rows_per_second or not self.rows_per_second.keys() >= set(kinds):
            return None
        speeds = [self.rows_per_second[kind] for kind in kinds] or [max(self.rows_per_second.values())]
        return num_rows * len(speeds) / sum(speeds)


UNKNOWN = Rates()


def of_jobs(session: Session, job_ids: Collection[str]) -> dict[str, Rates]:
    """The rates of inference jobs by their ids; jobs whose model was never loaded for equal work are absent."""
    if not job_ids:
        return {}
    query = select(col(Job.id), col(Job.workload)).where(col(Job.id).in_(job_ids), col(Job.workload).is_not(None))
    workloads = {row.id: Workload(**row.workload) for row in session.execute(query)}
    found = of_workloads(session, set(workloads.values()))
    return {job_id: found[workload] for job_id, workload in workloads.items() if workload in found}


def of_workloads(session: Session, workloads: Collection[Workload]) -> Mapping[Workload, Rates]:
    """The rates of workloads; those whose model was never loaded are absent.

    The commit of a hub id is not part of the workloads of jobs, so the latest measurement counts for each.
    """
    columns: list[Any] = [
        col(SpeedRecord.model), col(SpeedRecord.revision), col(SpeedRecord.task), col(SpeedRecord.settings),
        col(SpeedRecord.dtype), col(SpeedRecord.device_name), col(SpeedRecord.unit), col(SpeedRecord.log_mean),
    ]  # fmt: skip
    query = (
        select(*columns)
        .where(
            col(SpeedRecord.model).in_(sorted({workload.model for workload in workloads})),
            col(SpeedRecord.unit).in_((Unit.ROWS.value, Unit.LOADS.value)),
        )
        .order_by(col(SpeedRecord.measured_at))
    )
    speeds: defaultdict[Workload, dict[str, float]] = defaultdict(dict)
    loads: defaultdict[Workload, dict[str, float]] = defaultdict(dict)
    for row in session.execute(query) if workloads else ():
        measured = Workload(row.model, row.revision, row.task, row.settings, row.dtype)
        for workload in {measured, replace(measured, revision="")}:
            if row.unit == Unit.ROWS:
                speeds[workload][row.device_name] = math.exp(row.log_mean)
            else:
                loads[workload][row.device_name] = math.exp(-row.log_mean)
    return {workload: Rates(speeds[workload], seconds) for workload, seconds in loads.items() if workload in workloads}
