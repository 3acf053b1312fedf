"""Routes of jobs: submit, list, retrieve, cancel, retry, and their artifacts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from jobs.access.pins import Pins
from jobs.config.catalogue import with_catalogue
from jobs.db.states import JobState
from jobs.db.tables import ApiKey, Artifact, Job
from jobs.db.transaction import Transaction
from jobs.errors import Conflict, NotFound
from jobs.ledger import jobs as job_ledger
from jobs.ledger.accounts.usage import RowsWanted
from jobs.ledger.job_pins import stamp_spec
from jobs.ledger.timing.workloads import workload_of
from jobs.queue import WakeReason
from jobs.specs.array_spec import ArraySpec, parse_submission
from jobs.specs.inference import InferenceSpec, JobSpec, TrainingSpec
from scheduler.api.access.auth import Key, require_key
from scheduler.api.access.scope import find, scope_of
from scheduler.api.bodies.request_body import read_document, yaml_or_json
from scheduler.api.bodies.stored_object import RANGES, stream_object
from scheduler.api.context import ID_PATTERN, AfterId, Context, InContext, JobId, PageSize
from scheduler.api.errors import error_responses
from scheduler.api.views.describe_jobs import describe_job, describe_jobs
from scheduler.api.views.file_views import ArtifactView, artifact_view
from scheduler.api.views.job_views import JobView
from scheduler.api.views.lists import Page, page, shown_specs
from scheduler.control.admission.promise_admission import admit
from scheduler.control.admission.row_counts import count_job_rows
from scheduler.control.admission.submission import Submission, measure_size
from scheduler.control.planning.arrays import check_array
from scheduler.control.planning.planner import check_submission

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
        {
            "oneOf": [
                {"$ref": f"#/components/schemas/{spec.__name__}"} for spec in (InferenceSpec, TrainingSpec, ArraySpec)
            ]
        }
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
    """Submit a job. If its spec, input, model or output is invalid, no job is created and the error names the field."""
    spec = parse_submission(document)
    if not isinstance(spec, ArraySpec):
        spec = with_catalogue(spec, context.settings.models)
    if idempotency_key is not None:
        with context.database.read() as session:
            before = job_ledger.find_submitted(session, key.project, idempotency_key)
        if before is not None:
            response.status_code = 200
            return _same_job(context, before, spec)
    pins, wanted, admission = _checked(context, spec, key.project)
    job = job_ledger.submit(
        context.database,
        spec,
        project=key.project,
        idempotency_key=idempotency_key,
        wanted=wanted,
        pins=pins,
        admit=admission,
    )
    context.doorbell.wake(WakeReason.SUBMISSION)
    return _same_job(context, job, spec)


@router.get("", responses=error_responses(404))
def list_jobs(
    context: InContext,
    key: Key,
    after: AfterId = None,
    limit: PageSize = 20,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    parent: Annotated[
        str | None, Query(pattern=ID_PATTERN, description="The children of this array; by default, all other jobs.")
    ] = None,
) -> Page[JobView]:
    """Jobs of the key's project, newest first, without the children of arrays. Large values are left out of large specs
    (`spec_is_cut`). A page may be shorter than `limit`; `has_more` says whether there are more."""
    with context.database.read() as session:
        if after is not None:
            find(session, Job, after, key)
        jobs, has_more = job_ledger.list_jobs(
            session, project=scope_of(key), after=after, limit=limit, state=state, parent_id=parent
        )
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
        200: {"model": JobView, "description": "An earlier retry of this job, which has not ended."},
        **error_responses(403, 404, 409),
    },
)
def retry_job(context: InContext, key: Key, job_id: JobId, response: Response) -> JobView:
    """Submit a failed, cancelled or expired job again as a new job. If an earlier retry has not ended, it is returned
    instead. Returns 409 for jobs in other states."""
    with context.database.read() as session:
        ended = find(session, Job, job_id, key)
        live = job_ledger.live_retry(session, job_id)
    if live is not None:
        response.status_code = 200
        return describe_job(context, live.id)
    pins, wanted = None, None
    if ended.state.is_terminal and ended.state != JobState.COMPLETED:  # other states are rejected below
        pins, wanted, _ = _checked(context, parse_submission(ended.spec), ended.project, retried=ended)
    job = job_ledger.retry(context.database, job_id, wanted=wanted, pins=pins)
    context.doorbell.wake(WakeReason.SUBMISSION)
    return describe_job(context, job.id)


@router.get("/{job_id}/artifacts", responses=error_responses(404))
def list_artifacts(context: InContext, key: Key, job_id: JobId) -> Page[ArtifactView]:
    """The files that a job produced, sorted by name."""
    with context.database.read() as session:
        find(session, Job, job_id, key)
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
    name: Annotated[str, Path(pattern=r"^[^\x00]{1,500}$", description="Name of the artifact.")],
) -> Response:
    """The bytes of a job's artifact, or a `Range` of them."""
    with context.database.read() as session:
        find(session, Job, job_id, key)
        artifact = session.get(Artifact, (job_id, name))
    if artifact is None:
        raise NotFound(f"job {job_id} has no artifact '{name}'")
    return stream_object(request, context, key, artifact.key, num_bytes=artifact.num_bytes, sha256=artifact.sha256)


def _check_visible(context: Context, key: ApiKey, job_id: str) -> None:
    with context.database.read() as session:
        find(session, Job, job_id, key)


def _checked(
    context: Context, spec: JobSpec | ArraySpec, project: str, *, retried: Job | None = None
) -> tuple[Pins | None, RowsWanted | None, Callable[[Transaction], float | None]]:
    """Check a spec, which may be that of an ended job that is retried. Returns the versions of its files, the room that
    it needs in its project's queue, and what admits its promise, if it has one."""
    settings, store, database = context.settings, context.store, context.database
    if isinstance(spec, ArraySpec):
        check_array(spec, settings, store=store, database=database, project=project, retried=retried)
        return None, None, _nothing  # each child has its own when it is made
    needs = check_submission(spec, rules=settings, database=database, store=store, project=project)
    pins = stamp_spec(spec, settings)
    wanted = count_job_rows(spec, project=project, rules=settings, store=store, database=database)
    if spec.promise is None:
        return pins, wanted, _nothing
    size = measure_size(spec, rules=settings, store=store, database=database, project=project)
    submission = Submission(spec, project, workload_of(spec, pins), needs, size)
    return pins, wanted, lambda tx: admit(tx, submission, settings, settings.projects)


def _nothing(_: Transaction) -> None:
    """Without a promise, nothing is admitted."""


def _same_job(context: Context, job: Job, spec: JobSpec | ArraySpec) -> JobView:
    if job.spec != spec.model_dump(mode="json"):
        raise Conflict("this Idempotency-Key was used for another spec; send a new key", param="Idempotency-Key")
    return describe_job(context, job.id)
