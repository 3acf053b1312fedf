"""Reads what a forecast starts from: jobs, slots and leases, how much work is left, how fast it is, and past errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import and_, select
from sqlmodel import Session, col

from jobs.config.limits import Limits
from jobs.config.times import LeaseTimes
from jobs.db.tables import Chunk, Job
from jobs.db.transaction import Transaction
from jobs.ledger.timing import forecasts, speeds
from jobs.ledger.timing.forecasts import Forecast, ForecastTime, What
from jobs.ledger.timing.speeds import Measured, Speed, SpeedKey, Unit
from jobs.ledger.timing.workloads import Workload
from scheduler.control.dispatch.dispatcher import read_policy_input
from scheduler.forecast.estimates import OWN_SECONDS, OWN_SHARE, Estimate, estimate
from scheduler.forecast.intervals import Calibration, calibrate, interval
from scheduler.forecast.simulate import MOST_WORK, Work
from scheduler.forecast.spans import Moment, Span, forecast
from scheduler.policy.promises import Promise, project_shares, with_promises
from scheduler.policy.types import JobFacts, LeaseFacts, ProjectFacts, SlotFacts

_QUEUE_HEAD = 500  # waiting jobs of each priority that a forecast looks at, beyond one for each slot


@dataclass(frozen=True, slots=True)
class State:
    """What a forecast starts from, read in one transaction."""

    works: tuple[Work, ...]
    slots: tuple[SlotFacts, ...]
    leases: tuple[LeaseFacts, ...]
    now: float
    """Unix seconds by the database's clock."""
    calibrations: Mapping[tuple[int, What], Calibration]
    """Rank of a priority and what is forecast -> the calibration; those that are not known yet are absent."""
    promises: Mapping[str, Promise]
    projects: Mapping[str, ProjectFacts]
    """What the projects of the jobs are entitled to, by name."""
    shares: Mapping[str, int]
    """Project -> number of slots that its promised jobs may have together."""

    def beside(self, projects: Mapping[str, ProjectFacts]) -> State:
        """The state as it is with other projects that have jobs."""
        shares = project_shares(len(self.slots), projects)
        jobs = with_promises((work.job for work in self.works), self.promises, self.now, shares=shares)
        works = tuple(replace(work, job=job) for work, job in zip(self.works, jobs, strict=True))
        return replace(self, works=works, projects=projects, shares=shares)

    def with_promise(self, added: Work, promise: Promise) -> tuple[State, Work]:
        """The state and a job that is added to it, as the policy would see them with its promise."""
        promises = {**self.promises, added.job.id: promise}
        works = (*self.works, added)
        jobs = with_promises((work.job for work in works), promises, self.now, shares=self.shares)
        *others, changed = (replace(work, job=job) for work, job in zip(works, jobs, strict=True))
        return replace(self, works=tuple(others)), changed

    def spans(
        self, *added: Work, most_work: int = MOST_WORK, before_pass: Callable[[], None] = lambda: None
    ) -> dict[str, Span]:
        """When each job starts and ends, if these jobs are added; see `forecast`."""
        works = (*self.works, *added)
        return forecast(
            works,
            self.slots,
            self.leases,
            self.now,
            projects=self.projects,
            most_work=most_work,
            before_pass=before_pass,
        )

    def said(self, rank: int, span: Span) -> Forecast:
        """What to say about a job of this priority."""
        return Forecast(self._said(rank, What.START, span.start), self._said(rank, What.END, span.end))

    def _said(self, rank: int, what: What, moment: Moment | None) -> ForecastTime | None:
        return None if moment is None else interval(moment, self.now, self.calibrations.get((rank, what)))


def read_state(session: Transaction, times: LeaseTimes, limits: Limits) -> State:
    """Read what a forecast starts from. Jobs far down a long queue are left out."""
    facts = read_policy_input(session, times, limits, queue_head=_QUEUE_HEAD)
    return State(
        works=read_works(session, facts.jobs, facts.slots),
        slots=facts.slots,
        leases=facts.leases,
        now=facts.now,
        calibrations=read_calibrations(session),
        promises=facts.promises,
        projects=facts.projects,
        shares=facts.shares,
    )


def read_calibrations(session: Session) -> dict[tuple[int, What], Calibration]:
    """The calibrations by priority and by what is forecast; those that are not known yet are absent."""
    found = {kind: calibrate(accuracy.ratios) for kind, accuracy in forecasts.accuracy(session).items()}
    return {kind: calibration for kind, calibration in found.items() if calibration is not None}


def read_works(session: Session, jobs: Sequence[JobFacts], slots: Sequence[SlotFacts]) -> tuple[Work, ...]:
    """Read how much work jobs have left and how fast they are."""
    job_ids = [job.id for job in jobs]
    first_chunk = and_(col(Chunk.job_id) == col(Job.id), col(Chunk.start_row) == 0)
    columns: list[Any] = [
        col(Job.id), col(Job.num_rows), col(Job.num_done).label("num_done"), col(Job.started_at), col(Chunk.stop_row)
    ]  # fmt: skip
    query = select(*columns).outerjoin(Chunk, first_chunk).where(col(Job.id).in_(job_ids))
    rows = {row.id: row for row in session.execute(query)}
    workloads = speeds.workloads(session, job_ids)
    own = speeds.measure(session, [row.id for row in rows.values() if row.started_at is not None])
    shares = {row.id: row.num_done / row.num_rows if row.num_rows else 0.0 for row in rows.values()}
    known = _with_live(speeds.of_models(session, [workload.model for _, workload in workloads.values()]), own, shares)
    works = []
    for job in jobs:
        row = rows[job.id]
        found: Mapping[str, Estimate] = {}
        if job.id in workloads:
            keys = keys_of(workloads[job.id][1], slots, gang_size=job.gang_size, is_elastic=job.elastic)
            found = estimate(keys, known, own.get(job.id, ()), share_done=shares[job.id])
        works.append(
            Work(
                job,
                amount=float(row.num_rows - row.num_done) if row.num_rows else None,
                speeds={device: one.per_second for device, one in found.items()},
                chunk_rows=float(row.stop_row or 1),
            )
        )
    return tuple(works)


def keys_of(workload: Workload, slots: Sequence[SlotFacts], *, gang_size: int, is_elastic: bool) -> list[SpeedKey]:
    """The keys of a job's speed on each kind of device that is online."""
    unit = Unit.ROWS if is_elastic else Unit.STEPS
    return [SpeedKey(workload, kind, gang_size, unit) for kind in sorted({slot.kind for slot in slots})]


def _with_live(
    known: dict[SpeedKey, Speed], own: Mapping[str, Sequence[Measured]], shares: Mapping[str, float]
) -> dict[SpeedKey, Speed]:
    """The known speeds with those of running jobs, which other jobs with the same workload profit from already."""
    for job_id, found in sorted(own.items()):
        for one in found:
            if shares[job_id] >= OWN_SHARE or one.seconds >= OWN_SECONDS:
                known[one.key] = known.get(one.key, speeds.NOTHING).with_measured(one)
    return known
