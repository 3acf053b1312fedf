"""Route that says what would happen to a job if it were submitted now."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from sqlalchemy import select
from sqlmodel import col

from jobs.config.catalogue import with_catalogue
from jobs.db.tables import Job
from jobs.specs.array_spec import parse_single
from jobs.specs.inference import InferenceSpec, TrainingSpec
from scheduler.api.access.auth import Key, require_key
from scheduler.api.access.scope import scope_of
from scheduler.api.bodies.request_body import read_document, yaml_or_json
from scheduler.api.context import InContext
from scheduler.api.errors import error_responses
from scheduler.api.views.forecast_views import PlanView, plan_view
from scheduler.control.admission.job_plan import plan_submission

router = APIRouter(tags=["jobs"], dependencies=[Depends(require_key)], responses=error_responses(400))


@router.post(
    "/v1/plan",
    responses=error_responses(403, 408, 409, 413),
    openapi_extra=yaml_or_json(
        {"oneOf": [{"$ref": f"#/components/schemas/{spec.__name__}"} for spec in (InferenceSpec, TrainingSpec)]}
    ),
)
def plan_job(context: InContext, key: Key, document: Annotated[dict[str, Any], Depends(read_document)]) -> PlanView:
    """Say when a job would start and end if it were submitted now, how many slots it would hold, and which jobs it
    would delay. The spec is checked as at a submission. Nothing is changed."""
    single = parse_single(document, "cannot be planned; plan the spec of one child")
    spec = with_catalogue(single, context.settings.models)
    plan = plan_submission(
        spec,
        rules=context.settings,
        times=context.settings,
        store=context.store,
        database=context.database,
        project=key.project,
    )
    visible = select(col(Job.id), col(Job.name)).where(col(Job.id).in_(plan.delays))
    if (project := scope_of(key)) is not None:
        visible = visible.where(col(Job.project) == project)
    with context.database.read() as session:
        names = {row.id: row.name for row in session.execute(visible)}
    return plan_view(plan, names)
