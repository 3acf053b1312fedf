"""Routes of a job's metrics: progress and speed, a training's metrics by step, and its attempts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from jobs.db.tables import Job
from jobs.ledger import attempts
from jobs.specs.inference import TRAINING
from scheduler.api.access.auth import Key, require_key
from scheduler.api.access.scope import find
from scheduler.api.context import InContext, JobId
from scheduler.api.errors import error_responses
from scheduler.api.views.history_views import AttemptView, MetricList, MetricView, attempt_view
from scheduler.api.views.lists import Page, page

router = APIRouter(
    prefix="/v1/jobs", tags=["jobs"], dependencies=[Depends(require_key)], responses=error_responses(400, 404)
)

_MOST_METRICS = 100_000


@router.get("/{job_id}/metrics")
def get_job_metrics(
    context: InContext,
    key: Key,
    job_id: JobId,
    name: Annotated[str | None, Query(max_length=200, description="For a training: only this metric.")] = None,
    after_step: Annotated[
        int, Query(ge=-1, le=2**63 - 1, description="For a training: only steps after this one.")
    ] = -1,
    limit: Annotated[int, Query(ge=1, le=_MOST_METRICS, description="Maximum number of values.")] = _MOST_METRICS,
) -> MetricList:
    """A job's metrics. For a training: one value per metric and step. For inference: progress and speed; the step is
    the number of rows done."""
    with context.database.read() as session:
        job = find(session, Job, job_id, key)
        if job.kind == TRAINING:
            found = attempts.metrics(session, job_id, name=name, after_step=after_step, limit=limit)
            return MetricList(data=[MetricView(step=one.step, name=one.name, value=one.value) for one in found])
        now = session.time()
    numbers = _numbers(job, now)
    return MetricList(data=[MetricView(step=job.num_done, name=each, value=value) for each, value in numbers.items()])


@router.get("/{job_id}/attempts")
def list_attempts(context: InContext, key: Key, job_id: JobId) -> Page[AttemptView]:
    """The attempts of a training: where each ran, its first and last step, and why it ended."""
    with context.database.read() as session:
        find(session, Job, job_id, key)
        slots = attempts.slots_by_leader(session, job_id)
        found = [attempt_view(each, slots[each.lease_id]) for each in attempts.attempts(session, job_id)]
        return page(found, id_field="number")


def _numbers(job: Job, now: float) -> dict[str, float]:
    numbers: dict[str, float] = {
        "rows_total": job.num_rows,
        "rows_done": job.num_done,
        "rows_failed": job.num_failed,
        "num_tokens": job.num_tokens,
    }
    if job.started_at is not None:
        seconds = (now if job.ended_at is None else job.ended_at) - job.started_at
        numbers["seconds"] = seconds
        if seconds > 0:
            numbers["rows_per_second"] = job.num_done / seconds
            numbers["tokens_per_second"] = job.num_tokens / seconds
    return numbers
