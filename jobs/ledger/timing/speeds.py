"""Measured speeds: recorded when a job completes, and found again for jobs with the same workload.

The speed of inference is that of one slot, in rows and in tokens per second; that of a training is the speed of all its
slots together, in steps per second. Loading is no part of it; it has a speed of its own, in loads per second of a slot.
Nothing here guesses: what was never measured is unknown.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum

import orjson
from sqlalchemy import JSON, case, func, select
from sqlmodel import Session, col

from jobs.access.pins import Pins
from jobs.db.tables import Attempt, Job, Lease, LeaseCounts, Slot, SpeedRecord
from jobs.db.transaction import Transaction
from jobs.ledger.timing.stage_times import StageTimes
from jobs.ledger.timing.workloads import Workload
from jobs.specs.inference import TRAINING

REMEMBERED_SECONDS = 600.0
"""Seconds of work that a mean stands for at most; older work counts less the more comes after it."""
LONGEST_OBSERVATION_SECONDS = 120.0
"""A job counts as at most this much work, so that one long job does not outweigh five others."""
_PRIOR_SECONDS = 60.0
_PRIOR_DEVIATION = 0.3
"""The spread that one measurement alone would not show: as if a minute of work had shown it."""


class Unit(StrEnum):
    """What a speed counts per second."""

    ROWS = "rows"
    TOKENS = "tokens"  # without padding; only of tasks whose rows have tokens
    STEPS = "steps"  # of a training
    LOADS = "loads"  # of the model of an inference job, while it is loaded


@dataclass(frozen=True, slots=True)
class SpeedKey:
    """What a speed was measured of, and where."""

    workload: Workload
    device_name: str
    """Kind of device and its name, as in `device_of`."""
    num_slots: int
    unit: Unit

    @property
    def id(self) -> str:
        """Key of the speed's row."""
        return hashlib.sha256(orjson.dumps(astuple(self))).hexdigest()


@dataclass(frozen=True, slots=True)
class Measured:
    """Work that was done and timed."""

    key: SpeedKey
    amount: float
    """Number of rows, tokens, steps or loads."""
    seconds: float
    """Seconds that this took; of inference, summed over the slots."""


@dataclass(frozen=True, slots=True)
class Speed:
    """A mean of speeds, by their logarithms."""

    log_mean: float
    log_variance: float
    seconds: float
    """Seconds of work that the mean stands for."""

    @property
    def per_second(self) -> float:
        """The speed that half of the work exceeds."""
        return math.exp(self.log_mean)

    @property
    def deviation(self) -> float:
        """Standard deviation of the logarithm of the speed, never below what so little work can show."""
        known = self.log_variance * self.seconds + _PRIOR_DEVIATION**2 * _PRIOR_SECONDS
        return math.sqrt(known / (self.seconds + _PRIOR_SECONDS))

    def with_measured(self, measured: Measured) -> Speed:
        """The mean with one more measurement, which counts by its seconds."""
        log_speed = math.log(measured.amount / measured.seconds)
        weight = min(measured.seconds, LONGEST_OBSERVATION_SECONDS)
        total = self.seconds + weight
        mean = (self.seconds * self.log_mean + weight * log_speed) / total
        before = self.seconds * (self.log_variance + (self.log_mean - mean) ** 2)
        variance = (before + weight * (log_speed - mean) ** 2) / total
        return Speed(mean, variance, min(total, REMEMBERED_SECONDS))


NOTHING = Speed(0.0, 0.0, 0.0)
"""The mean of no measurement, to fold the first one into."""


def device_of(device: str, name: str) -> str:
    """The kind of device of a slot: `cuda` or `cpu`, and its name."""
    return f"{device} {name}"


# -- measure -------------------------------------------------------------------------------------------------------


def observe(tx: Transaction, job_id: str) -> None:
    """Fold the speeds of a job that completes into the means. The caller's transaction locks nothing after this.

    Does nothing for a job whose workload is unknown because an older release accepted it.
    """
    found = measure(tx, [job_id]).get(job_id, ())
    known = _locked(tx, [one.key for one in found])
    for one in found:
        store(tx, one.key, known.get(one.key, NOTHING).with_measured(one))


def measure(session: Session, job_ids: Sequence[str]) -> dict[str, list[Measured]]:
    """What jobs have done so far and how long it took, by job id. Jobs that have recorded nothing are absent."""
    found: dict[str, list[Measured]] = {}
    by_kind = workloads(session, job_ids)
    others = {job_id: workload for job_id, (kind, workload) in by_kind.items() if kind != TRAINING}
    trainings = {job_id: workload for job_id, (kind, workload) in by_kind.items() if kind == TRAINING}
    for job_id, key, amount, seconds in (*_rows(session, others), *_steps(session, trainings)):
        if amount > 0 and seconds > 0:
            found.setdefault(job_id, []).append(Measured(key, amount, seconds))
    return found


def workloads(session: Session, job_ids: Sequence[str]) -> dict[str, tuple[str, Workload]]:
    """The kind and the workload of jobs by their ids; jobs whose workload is unknown are absent."""
    pins = case((col(Job.started_at).is_not(None), col(Job.pins)), else_=None)  # commits are pinned by the first runner
    query = select(col(Job.id), col(Job.kind), col(Job.workload), pins.label("pins"))
    return {
        row.id: (row.kind, Workload(**row.workload).with_commit(Pins.parse(row.pins).model))
        for row in session.execute(query.where(col(Job.id).in_(job_ids), col(Job.workload).is_not(None)))
    }


def _rows(session: Session, jobs: Mapping[str, Workload]) -> Iterable[tuple[str, SpeedKey, float, float]]:
    """Rows, tokens and loads of the model of inference jobs, by job and kind of device."""
    recorded = func.coalesce(LeaseCounts.stage_times, Lease.stage_times, type_=JSON()).label("stage_times")
    leases = (
        select(col(Lease.job_id), col(Slot.device), col(Slot.name), recorded)
        .join(Slot, col(Slot.id) == col(Lease.slot_id))
        .join(LeaseCounts, col(LeaseCounts.lease_id) == col(Lease.id), isouter=True)
        .where(col(Lease.job_id).in_(jobs), recorded.is_not(None))
    )
    sums: dict[tuple[str, str], StageTimes] = {}
    num_loads = Counter[tuple[str, str]]()
    for row in session.execute(leases):
        place, times = (row.job_id, device_of(row.device, row.name)), StageTimes(**row.stage_times)
        sums[place] = sums.get(place, StageTimes()) + times
        num_loads[place] += times.load > 0
    for place, total in sums.items():
        job_id, device_name = place
        for unit, amount, seconds in (
            (Unit.ROWS, total.num_rows, total.seconds),
            (Unit.TOKENS, total.num_row_tokens, total.seconds),
            (Unit.LOADS, num_loads[place], total.load),
        ):
            yield job_id, SpeedKey(jobs[job_id], device_name, 1, unit), amount, seconds


def _steps(session: Session, jobs: Mapping[str, Workload]) -> Iterable[tuple[str, SpeedKey, float, float]]:
    """Steps of trainings, over all attempts on one kind of device with the same number of slots."""
    attempts = (
        select(Attempt, col(Slot.device), col(Slot.name), col(Job.max_slots))
        .join(Slot, col(Slot.id) == col(Attempt.slot_id))
        .join(Job, col(Job.id) == col(Attempt.job_id))
        .where(col(Attempt.job_id).in_(jobs), col(Attempt.begun_at).is_not(None))
    )
    sums: dict[tuple[str, SpeedKey], tuple[float, float]] = {}
    for attempt, device, name, num_slots in session.execute(attempts):
        key = SpeedKey(jobs[attempt.job_id], device_of(device, name), num_slots or 1, Unit.STEPS)
        steps, seconds = sums.get((attempt.job_id, key), (0.0, 0.0))
        sums[attempt.job_id, key] = (
            steps + attempt.last_step - attempt.resumed_step,
            seconds + attempt.advanced_at - attempt.begun_at,
        )
    for (job_id, key), (steps, seconds) in sums.items():
        yield job_id, key, steps, seconds


# -- the table -----------------------------------------------------------------------------------------------------


def of_models(session: Session, models: Iterable[str]) -> dict[SpeedKey, Speed]:
    """All speeds of these models, the one that was measured last coming last."""
    query = select(SpeedRecord).where(col(SpeedRecord.model).in_(sorted(set(models))))
    return {_key(record): _speed(record) for record in session.scalars(query.order_by(col(SpeedRecord.measured_at)))}


def _locked(session: Session, keys: Iterable[SpeedKey]) -> dict[SpeedKey, Speed]:
    """The speeds of these keys, whose rows are locked in the order of their ids."""
    query = select(SpeedRecord).where(col(SpeedRecord.id).in_([key.id for key in keys])).order_by(col(SpeedRecord.id))
    return {_key(record): _speed(record) for record in session.scalars(query.with_for_update())}


def store(tx: Transaction, key: SpeedKey, speed: Speed) -> None:
    """Replace the speed of a key."""
    measured = {
        "log_mean": speed.log_mean,
        "log_variance": speed.log_variance,
        "seconds": speed.seconds,
        "measured_at": tx.time(),
    }
    values = {
        **key.workload.as_json(),
        "id": key.id,
        "device_name": key.device_name,
        "num_slots": key.num_slots,
        "unit": key.unit.value,
        **measured,
    }
    insert = tx.insert(SpeedRecord).values(values)
    tx.execute(insert.on_conflict_do_update(index_elements=["id"], set_=measured))


def _key(record: SpeedRecord) -> SpeedKey:
    workload = Workload(record.model, record.revision, record.task, record.settings, record.dtype)
    return SpeedKey(workload, record.device_name, record.num_slots, Unit(record.unit))


def _speed(record: SpeedRecord) -> Speed:
    return Speed(record.log_mean, record.log_variance, record.seconds)
