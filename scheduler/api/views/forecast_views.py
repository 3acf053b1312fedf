"""Forecasts and plans as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field

from jobs.ledger.timing.forecasts import Forecast, ForecastTime
from scheduler.control.admission.job_plan import JobPlan


class MomentView(BaseModel):
    """A time that a forecast says, in Unix seconds. `at` without the others has no interval yet; `earliest` without the
    others is a lower bound, because what comes before it is unknown."""

    at: float | None = Field(description="The most likely time; null if only a lower bound is known.")
    earliest: float | None = Field(
        description="In nine of ten cases it is later; without `at`, it is not earlier unless jobs end early."
    )
    latest: float | None = Field(description="In nine of ten cases it is earlier; null if that cannot be said.")
    said_at: float = Field(description="When the forecast was made.")


class ForecastView(BaseModel):
    """When a job will start and end if no other job arrives. Null where nothing is known."""

    start: MomentView | None = Field(description="When it gets its first slot; null once it has had one.")
    end: MomentView | None = Field(description="When its work is done; null while its speed or length is unknown.")


class SlotsView(BaseModel):
    """A number of slots, and from when on they are held."""

    at: float
    slots: int


class DelayView(BaseModel):
    """A job that would be later."""

    job_id: str
    name: str | None
    seconds: float = Field(description="By how much its end, or its start if its end is unknown, would be later.")


class PlanView(BaseModel):
    """What would happen to a job if it were submitted now. Times are Unix seconds."""

    object: Literal["plan"] = "plan"
    total: int | None = Field(description="Rows or training steps; null if they cannot be counted in time.")
    chunks: int | None = Field(description="Number of chunks; null for a training, and if rows were not counted.")
    forecast: ForecastView
    slots: list[SlotsView] = Field(description="The slots that it would hold over time.")
    earliest_promise: float | None = Field(
        description="The earliest time that would be taken as its `promise`; null if nothing can be promised."
    )
    delays: list[DelayView] = Field(description="The jobs that would be later, the most delayed first.")
    delays_elsewhere: int = Field(description="Number of jobs of other projects that would be later.")


def plan_view(plan: JobPlan, names: Mapping[str, str | None]) -> PlanView:
    """A plan as JSON.

    Args:
        names: Names of the delayed jobs that the key may see.
    """
    most_first = sorted(plan.delays.items(), key=lambda delay: -delay[1])
    return PlanView(
        total=plan.num_rows,
        chunks=plan.num_chunks,
        forecast=forecast_view(plan.forecast),
        slots=[SlotsView(at=at, slots=number) for at, number in plan.slots],
        earliest_promise=plan.earliest_promise,
        delays=[
            DelayView(job_id=job_id, name=names[job_id], seconds=round(seconds, 1))
            for job_id, seconds in most_first
            if job_id in names
        ],
        delays_elsewhere=sum(job_id not in names for job_id in plan.delays),
    )


def forecast_view(forecast: Forecast) -> ForecastView:
    """A forecast as JSON."""
    return ForecastView(start=_moment(forecast.start), end=_moment(forecast.end))


def _moment(said: ForecastTime | None) -> MomentView | None:
    if said is None:
        return None
    return MomentView(at=said.at, earliest=said.earliest, latest=said.latest, said_at=said.said_at)
