"""When each job starts and ends, from runs of the policy; a time that depends on something unknown is a lower bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.forecast.simulate import MOST_WORK, Simulated, Work, simulate
from scheduler.policy.types import LeaseFacts, ProjectFacts, SlotFacts

_EQUAL_SECONDS = 1.0
_EQUAL_SHARE = 0.02
"""Two runs say the same about a job if their times differ by no more than this."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A time of a job, as a forecast says it."""

    at: float
    """Unix seconds."""
    is_bound: bool = False
    """Whether it is known only that it will not be earlier."""


@dataclass(frozen=True, slots=True)
class Span:
    """When a job starts and ends; None where nothing is known, and for the start of a job that has slots."""

    start: Moment | None
    end: Moment | None
    slots: tuple[tuple[float, int], ...] = ()
    """The numbers of slots that the job holds, each with the time from when on; empty if its length is unknown."""


def forecast(
    works: Sequence[Work],
    slots: Sequence[SlotFacts],
    leases: Sequence[LeaseFacts],
    now: float,
    *,
    projects: Mapping[str, ProjectFacts] | None = None,
    most_work: int = MOST_WORK,
    before_pass: Callable[[], None] = lambda: None,
) -> dict[str, Span]:
    """Say when each job starts and ends if no other job arrives.

    The policy is run with jobs of unknown length ending at once, and again with these never ending. What both runs say
    is known; what only the first one says is a lower bound.

    Args:
        works: All jobs that have leases or wait.
        slots: All online slots.
        leases: All live leases.
        now: Unix seconds.
        projects: See `decide`.
        most_work: See `simulate`, for each of the two runs.
        before_pass: See `simulate`.

    Returns:
        A span for each job, by its id.
    """

    def run(*, unknown_ends: bool) -> Simulated:
        return simulate(
            works,
            slots,
            leases,
            now,
            projects=projects,
            unknown_ends=unknown_ends,
            most_work=most_work,
            before_pass=before_pass,
        )

    early = run(unknown_ends=True)
    late = early if all(work.is_known for work in works) else run(unknown_ends=False)
    holding = {lease.job_id for lease in leases}
    return {
        work.job.id: Span(
            start=None if work.job.id in holding else _moment(early.starts, late.starts, early.until, work.job.id, now),
            end=_moment(early.ends, late.ends, early.until, work.job.id, now) if work.is_known else None,
            slots=tuple(early.slots.get(work.job.id, ())) if work.is_known else (),
        )
        for work in works
    }


def _moment(early: dict[str, float], late: dict[str, float], until: float, job_id: str, now: float) -> Moment | None:
    at = early.get(job_id)
    if at is None:
        return None if until == math.inf else Moment(until, is_bound=True)
    most = at + _EQUAL_SECONDS + _EQUAL_SHARE * (at - now)
    return Moment(at, is_bound=late.get(job_id, math.inf) > most)
