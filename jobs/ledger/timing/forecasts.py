"""Keeps what forecasts say about live jobs, and compares the first forecast of each with what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from sqlalchemy import delete, func, select
from sqlmodel import Session, col

from jobs.db.states import LIVE_JOB_STATES, JobState
from jobs.db.tables import ForecastError, ForecastRecord, Job
from jobs.db.transaction import Transaction

MOST_ERRORS = 200
"""The latest comparisons that are kept, for each priority and each of start and end."""
OFFSET_SECONDS = 60.0
"""Added to both times before they are compared, so that seconds do not count as factors."""
_MOVED_SECONDS = 1.0
_MOVED_SHARE = 0.01


class What(StrEnum):
    """What a forecast says of a job."""

    START = "start"  # when it gets its first slot
    END = "end"  # when its work is done


@dataclass(frozen=True, slots=True)
class ForecastTime:
    """A time that a forecast estimates. All are Unix seconds; what is None is unknown."""

    said_at: float
    at: float | None
    """The most likely time."""
    earliest: float | None
    """The actual time is later in nine of ten cases; without `at`, it is never earlier."""
    latest: float | None
    """The actual time is earlier in nine of ten cases."""

    def ratio(self, actual: float) -> float | None:
        """How many times as long as said it took until something happened; None if no time was said."""
        if self.at is None:
            return None
        return (max(0.0, actual - self.said_at) + OFFSET_SECONDS) / (max(0.0, self.at - self.said_at) + OFFSET_SECONDS)

    def includes(self, actual: float) -> bool | None:
        """Whether something happened within the interval; None if no interval was said."""
        if self.at is None or self.earliest is None:
            return None
        return self.earliest <= actual and (self.latest is None or actual <= self.latest)

    def is_near(self, other: ForecastTime | None) -> bool:
        """Whether an earlier forecast says the same, but for a second or a hundredth."""
        if other is None:
            return False
        for one, two in ((self.at, other.at), (self.earliest, other.earliest), (self.latest, other.latest)):
            if one is None or two is None:
                if one is not two:
                    return False
            elif abs(one - two) > _MOVED_SECONDS + _MOVED_SHARE * abs(one - self.said_at):
                return False
        return True


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a forecast says of a job."""

    start: ForecastTime | None
    """None if the job has started, or if nothing is known."""
    end: ForecastTime | None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far the latest forecasts were wrong."""

    ratios: tuple[float, ...]
    """The oldest first."""
    share_inside: float | None
    """Which part happened within its interval; None if none had an interval."""

    def quantile(self, share: float) -> float:
        """The ratio that this share of the ratios does not exceed."""
        in_order = sorted(self.ratios)
        return in_order[min(len(in_order) - 1, int(share * len(in_order)))]


# -- what is said --------------------------------------------------------------------------------------------------


def keep(tx: Transaction, made: Mapping[str, Forecast]) -> None:
    """Keep new forecasts of live jobs. One that says the same as the one before writes nothing."""
    known = {record.job_id: record for record in tx.scalars(select(ForecastRecord))}
    for job_id, forecast in sorted(made.items()):
        record = known.get(job_id)
        if record is None:
            record = ForecastRecord(job_id=job_id)
        elif _same(forecast.start, record.start) and _same(forecast.end, record.end):
            continue
        record.start, record.end = _as_json(forecast.start), _as_json(forecast.end)
        if forecast.start is not None and forecast.start.at is not None:
            record.first_start = record.first_start or record.start
        if forecast.end is not None and forecast.end.at is not None:
            record.first_end = record.first_end or record.end
        tx.add(record)


def of_jobs(session: Session, job_ids: Sequence[str]) -> dict[str, Forecast]:
    """The latest forecast of each of these jobs; jobs without one are absent."""
    if not job_ids:
        return {}
    query = select(ForecastRecord).where(col(ForecastRecord.job_id).in_(job_ids))
    return {record.job_id: Forecast(_parse(record.start), _parse(record.end)) for record in session.scalars(query)}


def _as_json(said: ForecastTime | None) -> dict[str, float | None] | None:
    return None if said is None else asdict(said)


def _parse(document: Mapping[str, float | None] | None) -> ForecastTime | None:
    return None if document is None else ForecastTime(**document)  # type: ignore[arg-type]  # `said_at` is never None


def _same(new: ForecastTime | None, old: Mapping[str, float | None] | None) -> bool:
    before = _parse(old)
    return before is None if new is None else new.is_near(before)


# -- what happened -------------------------------------------------------------------------------------------------


def compare(tx: Transaction) -> None:
    """Compare the first forecasts of jobs that have started or completed with what happened, and forget ended jobs."""
    jobs = (
        select(ForecastRecord, col(Job.priority), col(Job.state), col(Job.started_at), col(Job.ended_at))
        .join(Job, col(Job.id) == col(ForecastRecord.job_id))
        .where(col(Job.started_at).is_not(None))
        .order_by(col(ForecastRecord.job_id))
    )
    changed: set[tuple[int, What]] = set()
    for record, priority, state, started_at, ended_at in tx.execute(jobs).all():
        happened = {What.START: (record.first_start, started_at)}
        if state == JobState.COMPLETED:
            happened[What.END] = (record.first_end, ended_at)
        for what, (document, actual) in happened.items():
            said = _parse(document)
            ratio = None if said is None else said.ratio(actual)
            if said is not None and ratio is not None:
                inside = said.includes(actual)
                tx.add(ForecastError(priority=priority, what=what, ratio=ratio, is_inside=inside, at=actual))
                changed.add((priority, what))
        record.first_start = record.start = None
    tx.flush()
    live = select(col(Job.id)).where(col(Job.state).in_(LIVE_JOB_STATES))
    tx.execute(delete(ForecastRecord).where(col(ForecastRecord.job_id).not_in(live)))
    for priority, what in sorted(changed):
        forget_old(tx, priority, what)


def forget_old(tx: Transaction, priority: int, what: What) -> None:
    """Delete all but the latest comparisons of one kind."""
    of_kind = (col(ForecastError.priority) == priority, col(ForecastError.what) == what)
    newest = select(col(ForecastError.id)).where(*of_kind).order_by(col(ForecastError.id).desc()).limit(MOST_ERRORS)
    oldest_kept = tx.scalar(select(func.min(newest.subquery().c.id)))
    tx.execute(delete(ForecastError).where(*of_kind, col(ForecastError.id) < oldest_kept))


def accuracy(session: Session) -> dict[tuple[int, What], Accuracy]:
    """How far the latest forecasts were wrong, by priority and by what they said."""
    found: dict[tuple[int, What], list[ForecastError]] = {}
    for record in session.scalars(select(ForecastError).order_by(col(ForecastError.id))):
        found.setdefault((record.priority, What(record.what)), []).append(record)
    return {
        kind: Accuracy(tuple(one.ratio for one in records), _share_inside(records)) for kind, records in found.items()
    }


def _share_inside(records: Sequence[ForecastError]) -> float | None:
    said = [one.is_inside for one in records if one.is_inside is not None]
    return sum(said) / len(said) if said else None
