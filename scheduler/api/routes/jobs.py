"""Routes of jobs: submit, list, retrieve, cancel, retry, and their artifacts."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from jobs.access.pins import Pins
from jobs.config.catalogue import with_catalogue
from jobs.db.states import JobState
from jobs.db.tables import ApiKey, Artifact, Job
from jobs.errors import Conflict, NotFound
from jobs.ledger import jobs as job_ledger
from jobs.ledger.job_pins import stamp_spec
from jobs.ledger.usage import RowsWanted
from jobs.specs.inference import InferenceSpec, JobSpec, TrainingSpec, parse_spec
from scheduler.api.auth import Key, require_key
from scheduler.api.context import AfterId, Context, InContext, JobId, PageSize
from scheduler.api.errors import error_responses
from scheduler.api.job_views import describe_job, describe_jobs
from scheduler.api.listed import shown_specs
from scheduler.api.request_body import read_document, yaml_or_json
from scheduler.api.schemas import (
    ArtifactView,
    JobView,
    Page,
    artifact_view,
    page,
)
from scheduler.api.scope import find_job, scope_of
from scheduler.api.stored_object import RANGES, stream_object
from scheduler.control.admission import demand_of_job
from scheduler.control.planner import check_submission

router = APIRouter(
    prefix="/v1/jobs", tags=["jobs"], dependencies=[Depends(require_key)], responses=error_responses(400)
)


@router.post(
    "",
    status_code=201,
    response_model=JobView,
    responses={
        200: {"model": JobView, "description": "The job that was created with this Idempotency-Key before."},
        **error_responses(403, 408, 409, 413),
    },
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
        Header(pattern=r"^[\x21-\x7e]{1,200}$", description="Repeated submissions with one key create one job."),
    ] = None,
) -> JobView:
    """Submit a job. Errors in its spec, input, model or output paths are reported now, and then no job is created."""
    spec = with_catalogue(parse_spec(document), context.settings.models)
    if idempotency_key is not None:
        with context.database.read() as session:
            before = job_ledger.find_submitted(session, key.project, idempotency_key)
        if before is not None:
            response.status_code = 200
            return _same_job(context, before, spec)
    check_submission(spec, rules=context.settings, database=context.database, store=context.store, project=key.project)
    pins = stamp_spec(spec, context.settings)
    wanted = _demand(context, spec, key.project)
    job = job_ledger.submit(
        context.database, spec, project=key.project, idempotency_key=idempotency_key, wanted=wanted, pins=pins
    )
    context.doorbell.wake()
    return _same_job(context, job, spec)


@router.get("", responses=error_responses(404))
def list_jobs(
    context: InContext,
    key: Key,
    after: AfterId = None,
    limit: PageSize = 20,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
) -> Page[JobView]:
    """Jobs of the key's project, newest first. Large values are left out of large specs (`spec_is_cut`). A page may be
    shorter than `limit`; `has_more` says whether there are more."""
    with context.database.read() as session:
        if after is not None:
            find_job(session, after, key)
        jobs, has_more = job_ledger.list_jobs(session, project=scope_of(key), after=after, limit=limit, state=state)
        specs = shown_specs(session, jobs)
        found = describe_jobs(session, context, jobs[: len(specs)], specs)
        return page(found, has_more=has_more or len(found) < len(jobs))


@router.get("/{job_id}", responses=error_responses(404))
def get_job(context: InContext, key: Key, job_id: JobId) -> JobView:
    """One job."""
    _check_visible(context, key, job_id)
    return describe_job(context, job_id)


@router.post("/{job_id}/cancel", responses=error_responses(404, 409))
def cancel_job(context: InContext, key: Key, job_id: JobId) -> JobView:
    """Cancel a job. Its finished results stay readable. Returns 409 if the job has already ended."""
    _check_visible(context, key, job_id)
    job_ledger.cancel(context.database, job_id)
    context.doorbell.wake()
    return describe_job(context, job_id)


@router.post(
    "/{job_id}/retry",
    status_code=201,
    response_model=JobView,
    responses={
        200: {"model": JobView, "description": "The retry of this job that was requested before and is still running."},
        **error_responses(403, 404, 409),
    },
)
def retry_job(context: InContext, key: Key, job_id: JobId, response: Response) -> JobView:
    """Submit a failed, cancelled or expired job again as a new job. While that job is live, it is returned instead.
    Returns 409 for jobs in other states."""
    with context.database.read() as session:
        ended = find_job(session, job_id, key)
        live = job_ledger.live_retry(session, job_id)
    if live is not None:
        response.status_code = 200
        return describe_job(context, live.id)
    spec = parse_spec(ended.spec)
    pins: Pins | None = None
    if ended.state.is_terminal and ended.state != JobState.COMPLETED:  # other states are rejected below
        check_submission(
            spec, rules=context.settings, database=context.database, store=context.store, project=ended.project
        )
        pins = stamp_spec(spec, context.settings)
    wanted = _demand(context, spec, ended.project)
    job = job_ledger.retry(context.database, job_id, wanted=wanted, pins=pins)
    context.doorbell.wake()
    return describe_job(context, job.id)


@router.get("/{job_id}/artifacts", responses=error_responses(404))
def list_artifacts(context: InContext, key: Key, job_id: JobId) -> Page[ArtifactView]:
    """The files that a job made, by name."""
    with context.database.read() as session:
        find_job(session, job_id, key)
        return page([artifact_view(artifact) for artifact in job_ledger.artifacts(session, job_id)], id_field="name")


@router.get(
    "/{job_id}/artifacts/{name:path}",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file's bytes."},
        **RANGES,
        **error_responses(404),
    },
)
def get_artifact(
    request: Request,
    context: InContext,
    key: Key,
    job_id: JobId,
    name: Annotated[str, Path(pattern=r"^[^\x00]{1,500}$", description="The artifact's name.")],
) -> Response:
    """The bytes of a job's artifact, or a `Range` of them."""
    with context.database.read() as session:
        find_job(session, job_id, key)
        artifact = session.get(Artifact, (job_id, name))
    if artifact is None:
        raise NotFound(f"job {job_id} has no artifact '{name}'")
    return stream_object(request, context, key, artifact.key, num_bytes=artifact.num_bytes, sha256=artifact.sha256)


def _check_visible(context: Context, key: ApiKey, job_id: str) -> None:
    with context.database.read() as session:
        find_job(session, job_id, key)


def _demand(context: Context, spec: JobSpec, project: str) -> RowsWanted | None:
    return demand_of_job(spec, project=project, rules=context.settings, store=context.store, database=context.database)


def _same_job(context: Context, job: Job, spec: JobSpec) -> JobView:
    if job.spec != spec.model_dump(mode="json"):
        raise Conflict("this Idempotency-Key was used for another spec before", param="Idempotency-Key")
    return describe_job(context, job.id)
