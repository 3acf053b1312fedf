"""Routes of jobs: submit, list, look at, cancel, retry, their numbers and their artifacts."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from sqlalchemy import select
from sqlmodel import col
from starlette.responses import StreamingResponse

from jobs import ledger
from jobs.catalogue import with_catalogue
from jobs.database import Database
from jobs.errors import Conflict, NotFound
from jobs.specs import InferenceSpec, JobSpec, TrainingSpec, parse_spec
from jobs.states import JobState
from jobs.tables import Artifact, Job
from scheduler.api.auth import Key, require_key
from scheduler.api.context import AfterId, InContext, JobId, PageSize
from scheduler.api.documents import read_document, yaml_or_json
from scheduler.api.errors import ERROR_RESPONSES
from scheduler.api.job_views import describe_job, describe_jobs
from scheduler.api.objects import stream_object
from scheduler.api.schemas import (
    ArtifactView,
    JobView,
    Page,
    artifact_view,
    page,
)
from scheduler.planner import check_submission

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[Depends(require_key)], responses=ERROR_RESPONSES)


@router.post(
    "",
    status_code=201,
    response_model=JobView,
    responses={200: {"model": JobView, "description": "The job that was made under this Idempotency-Key before."}},
    openapi_extra=yaml_or_json(
        {"oneOf": [{"$ref": f"#/components/schemas/{spec.__name__}"} for spec in (InferenceSpec, TrainingSpec)]}
    ),
)
def submit_job(
    context: InContext,
    key: Key,
    document: Annotated[dict[str, Any], Depends(read_document)],
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(pattern=r"^[\x21-\x7e]{1,200}$", description="A repeated submission under one key makes one job."),
    ] = None,
) -> JobView:
    """Submit a job. What is wrong with its spec, input, model or output paths is said now, and then nothing is kept."""
    spec = with_catalogue(parse_spec(document), context.settings)
    if idempotency_key is not None:
        before = _find_by_key(context.database, idempotency_key)
        if before is not None:
            response.status_code = 200
            return _same_job(context.database, before, spec)
    check_submission(spec, settings=context.settings, database=context.database, store=context.store)
    job = ledger.submit(context.database, spec, project=key.project, idempotency_key=idempotency_key)
    context.doorbell.wake()
    return _same_job(context.database, job, spec)


@router.get("")
def list_jobs(
    context: InContext,
    after: AfterId = None,
    limit: PageSize = 20,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
) -> Page[JobView]:
    """Jobs, newest first."""
    with context.database.read() as session:
        jobs, has_more = ledger.list_jobs(session, after=after, limit=limit, state=state)
        return page(describe_jobs(session, context.database, jobs), has_more=has_more)


@router.get("/{job_id}")
def get_job(context: InContext, job_id: JobId) -> JobView:
    """One job."""
    return describe_job(context.database, job_id)


@router.post("/{job_id}/cancel")
def cancel_job(context: InContext, job_id: JobId) -> JobView:
    """Ask a job to stop; what it has finished stays readable. 409 when it has ended already."""
    ledger.cancel(context.database, job_id)
    context.doorbell.wake()
    return describe_job(context.database, job_id)


@router.post("/{job_id}/retry", status_code=201)
def retry_job(context: InContext, job_id: JobId) -> JobView:
    """Submit a failed, cancelled or expired job again, as a new job. 409 for any other."""
    job = ledger.retry(context.database, job_id)
    context.doorbell.wake()
    return describe_job(context.database, job.id)


@router.get("/{job_id}/artifacts")
def list_artifacts(context: InContext, job_id: JobId) -> Page[ArtifactView]:
    """The files a job made, by name."""
    with context.database.read() as session:
        ledger.get(session, job_id)
        return page([artifact_view(artifact) for artifact in ledger.artifacts(session, job_id)], id_field="name")


@router.get(
    "/{job_id}/artifacts/{name:path}",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file's bytes."}},
)
def get_artifact(
    context: InContext,
    job_id: JobId,
    name: Annotated[str, Path(pattern=r"^[^\x00]{1,500}$", description="The artifact's name.")],
) -> StreamingResponse:
    """The bytes of a file that a job made."""
    with context.database.read() as session:
        ledger.get(session, job_id)
        artifact = session.get(Artifact, (job_id, name))
    if artifact is None:
        raise NotFound(f"job {job_id} has no artifact '{name}'")
    return stream_object(context.store, artifact.key, num_bytes=artifact.num_bytes, sha256=artifact.sha256)


def _find_by_key(database: Database, idempotency_key: str) -> Job | None:
    with database.read() as session:
        return session.scalar(select(Job).where(col(Job.idempotency_key) == idempotency_key))


def _same_job(database: Database, job: Job, spec: JobSpec) -> JobView:
    if job.spec != spec.model_dump(mode="json"):
        raise Conflict("this Idempotency-Key was used for another spec before", param="Idempotency-Key")
    return describe_job(database, job.id)
