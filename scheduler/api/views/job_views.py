"""A job as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from jobs.db.states import JobState
from jobs.db.tables import Job, Lease, Notice
from jobs.ledger.timing.forecasts import Forecast
from jobs.ledger.timing.stage_times import ADVICE, STAGES, StageTimes
from jobs.specs.inference import Priority
from scheduler.api.views.forecast_views import ForecastView, forecast_view
from scheduler.api.views.lists import ShownSpec
from scheduler.api.views.slot_views import SlotActivity, slot_activity


class Counts(BaseModel):
    """Number of a job's rows; for a training, of its steps; for an array, of its children."""

    total: int = Field(description="Number of input rows or training steps; 0 until they are counted.")
    done: int = Field(description="Rows with a recorded result, including row errors; or steps done.")
    failed: int = Field(description="How many of `done` are row errors.")


class JobError(BaseModel):
    """Why a job ended without completing."""

    code: str
    message: str


class NoticeView(BaseModel):
    """Something that users should know about a job's run, although it is not an error."""

    code: str
    message: str
    at: float


class StagesView(BaseModel):
    """Where the time of an inference job went so far, summed over its slots. A slot's stages run at the same time."""

    seconds: dict[str, float] = Field(
        description="Seconds of each stage: `read`, `encode`, `wait` (the device has nothing to compute), `forward`, "
        "`decode`, `commit`."
    )
    device_busy: float | None = Field(description="Share of the time in which the devices computed, from 0 to 1.")
    padding: float | None = Field(description="Share of the computed tokens that are padding, from 0 to 1.")
    limited_by: str | None = Field(description="The stage that limits the job's speed.")
    advice: str | None = Field(description="What to change to make that stage faster.")


class TrialView(BaseModel):
    """A trial of a sweep."""

    index: int
    job_id: str
    value: float = Field(description="Its value of the sweep's metric.")
    values: dict[str, Any] = Field(description="What was searched.")
    pruned_step: int | None = Field(description="The step at which the sweep decided to end it early, or null.")


class SweepView(BaseModel):
    """How far a sweep is."""

    metric: str
    best: TrialView | None = Field(description="The completed trial that would win now.")
    num_pruned: int = Field(description="Number of trials that ended early.")


class JobView(BaseModel):
    """A job. Times are Unix seconds."""

    id: str
    object: Literal["job"] = "job"
    kind: str
    name: str | None
    state: JobState
    spec: dict[str, Any] = Field(description="The submitted spec with defaults filled in.")
    spec_is_cut: bool = Field(
        description="Whether values above 1 KiB are left out of `spec`. Happens in lists and streams for specs longer "
        "than 16 KiB; `GET /v1/jobs/{job_id}` returns the whole spec."
    )
    priority: Priority
    counts: Counts
    created_at: float
    ready_at: float | None = Field(
        description="Since when the job waits only for slots; in the future until `start_at`, and null while it waits "
        "for other jobs."
    )
    started_at: float | None
    ended_at: float | None
    promise_at: float | None = Field(description="When it was promised to be done; it does not end then.")
    error: JobError | None
    num_tokens: int = Field(description="Tokens that the model saw so far, without padding.")
    retry_of: str | None = Field(description="Id of the job that this job retries.")
    parent_id: str | None = Field(description="Id of the array of which this job is a child.")
    child_index: int | None = Field(description="Number of the child in its array, from 0.")
    children: dict[str, int] | None = Field(
        description="For an array: state -> number of its children in that state. Children that are not made yet have "
        "the state `waiting`."
    )
    sweep: SweepView | None = Field(
        description="For a sweep, except in lists and, before its end, in streams: how far it is."
    )
    trial_values: dict[str, Any] | None = Field(description="For a trial of a sweep: its values.")
    pruned_step: int | None = Field(
        description="For a trial that its sweep ended early: the step at which this was decided."
    )
    attempt: int = Field(
        description="Number of the latest grant of a slot, from 1; for a training, number of its latest attempt."
    )
    slots_held: int = Field(description="Number of slots that work on the job now.")
    doing: list[SlotActivity] = Field(description="What each of these slots does; a gang's leader comes first.")
    waiting_reason: str | None = Field(
        description="Why the job does not run yet, or gets no more slots although some are free."
    )
    forecast: ForecastView | None = Field(
        description="When it will start and end; null for a job that has ended, or without a forecast yet."
    )
    notices: list[NoticeView] = Field(description="Remarks about how the job runs, such as smaller batches.")
    metrics: dict[str, float] = Field(description="For a training: the latest value of each metric.")
    stages: StagesView | None = Field(description="For inference: where the time went, once rows are recorded.")


def job_view(
    job: Job,
    shown: ShownSpec,
    *,
    held: Sequence[Lease],
    waiting_reason: str | None,
    notices: Sequence[Notice] = (),
    metrics: Mapping[str, float] | None = None,
    times: StageTimes | None = None,
    forecast: Forecast | None = None,
    children: Mapping[str, int] | None = None,
) -> JobView:
    """A job as JSON."""
    error = None if job.error_code is None else JobError(code=job.error_code, message=job.error_message or "")
    return JobView(
        id=job.id,
        kind=job.kind,
        name=job.name,
        state=job.state,
        spec=shown.spec,
        spec_is_cut=shown.is_cut,
        priority=list(Priority)[job.priority],
        counts=Counts(total=job.num_rows, done=job.num_done, failed=job.num_failed),
        created_at=job.created_at,
        ready_at=job.ready_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        promise_at=job.promise_at,
        error=error,
        num_tokens=job.num_tokens,
        retry_of=job.retry_of,
        parent_id=job.parent_id,
        child_index=job.child_index,
        children=None if children is None else dict(children),
        sweep=None,
        trial_values=job.trial_values,
        pruned_step=job.pruned_step,
        attempt=job.attempt,
        slots_held=len(held),
        doing=[slot_activity(lease) for lease in held],
        waiting_reason=waiting_reason,
        forecast=None if forecast is None else forecast_view(forecast),
        notices=[NoticeView(code=one.code, message=one.message, at=one.at) for one in notices],
        metrics=dict(metrics or {}),
        stages=None if times is None else _stages_view(times),
    )


def _stages_view(times: StageTimes) -> StagesView:
    limit = times.limited_by
    return StagesView(
        seconds={stage: round(getattr(times, stage), 3) for stage in STAGES},
        device_busy=times.device_busy,
        padding=times.padding,
        limited_by=limit,
        advice=None if limit is None else ADVICE[limit],
    )
