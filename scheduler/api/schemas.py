"""The API's JSON responses as pydantic models, and how they are made from table rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from jobs.db.states import AttemptEnd, JobState, LeaseState, SlotState
from jobs.db.tables import Artifact, Attempt, Event, Job, Lease, LogLine, Notice, Slot, StoredFile
from jobs.ledger.paging import fitting
from jobs.specs.inference import Priority
from scheduler.api.listed import ShownSpec

Entry = TypeVar("Entry", bound=BaseModel)


class Page(BaseModel, Generic[Entry]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Entry]
    first_id: str | int | None = Field(description="Id of the first entry of this page.")
    last_id: str | int | None = Field(
        description="Id of the last entry of this page; pass it as `after` to get the next page."
    )
    has_more: bool


def page(entries: Sequence[Entry], *, has_more: bool = False, id_field: str = "id") -> Page[Entry]:
    """A page with all of these entries."""
    ids = [getattr(entry, id_field) for entry in entries]
    return Page(
        data=list(entries),
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=has_more,
    )


def bounded_page(entries: Iterable[Entry], limit: int, *, has_more: bool = False) -> Page[Entry]:
    """A page with as many of these entries as fit.

    Args:
        limit: Most entries of the page.
        has_more: Whether there are more entries after these.
    """
    found, is_cut = fitting(entries, limit, num_bytes)
    return page(found, has_more=has_more or is_cut)


class Sent(Protocol):
    """Something that is sent as JSON: a pydantic model, such as an entry of a list."""

    def model_dump_json(self) -> str:
        """The JSON text."""


def num_bytes(entry: Sent) -> int:
    """Bytes of an entry's JSON."""
    return len(entry.model_dump_json().encode())


class Counts(BaseModel):
    """Number of a job's rows; for a training, of its steps."""

    total: int = Field(description="Number of input rows or training steps; 0 until they are counted.")
    done: int = Field(description="Rows with a recorded result, including row errors; or steps done.")
    failed: int = Field(description="How many of `done` are row errors.")


class JobError(BaseModel):
    """Why a job ended without completing."""

    code: str
    message: str


class SlotActivity(BaseModel):
    """What one of a job's slots does, according to its last heartbeat."""

    slot_id: str
    activity: str = Field(
        description="A phrase such as `loading the model`, `computing rows from 512`, `training step 6`."
    )
    since: float = Field(description="When this activity began, Unix seconds.")


class NoticeView(BaseModel):
    """Something a user should know about how a job runs, although it is not an error."""

    code: str
    message: str
    at: float


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
    started_at: float | None
    ended_at: float | None
    error: JobError | None
    num_tokens: int = Field(description="Tokens that the model saw so far, without padding.")
    retry_of: str | None = Field(description="The job that this one is a retry of.")
    attempt: int = Field(
        description="Number of the latest grant of a slot, from 1; for a training, number of its latest attempt."
    )
    slots_held: int = Field(description="Number of slots that work on the job now.")
    doing: list[SlotActivity] = Field(description="What each of these slots does; a gang's leader comes first.")
    waiting_reason: str | None = Field(description="Why the job does not run yet, if it waits.")
    notices: list[NoticeView] = Field(description="Remarks about how the job runs, such as smaller batches.")
    metrics: dict[str, float] = Field(description="For a training: the latest value of each metric.")


def job_view(
    job: Job,
    shown: ShownSpec,
    *,
    held: Sequence[Lease],
    waiting_reason: str | None,
    notices: Sequence[Notice] = (),
    metrics: Mapping[str, float] | None = None,
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
        started_at=job.started_at,
        ended_at=job.ended_at,
        error=error,
        num_tokens=job.num_tokens,
        retry_of=job.retry_of,
        attempt=job.attempt,
        slots_held=len(held),
        doing=[_slot_activity(lease) for lease in held],
        waiting_reason=waiting_reason,
        notices=[NoticeView(code=one.code, message=one.message, at=one.at) for one in notices],
        metrics=dict(metrics or {}),
    )


class EventView(BaseModel):
    """One line of a job's history."""

    id: int
    object: Literal["event"] = "event"
    job_id: str
    at: float
    name: str
    data: dict[str, Any]


def event_view(event: Event) -> EventView:
    """An event as JSON."""
    return EventView(id=event.id or 0, job_id=event.job_id, at=event.at, name=event.name, data=event.data)


class LogView(BaseModel):
    """One log line of a job's runner."""

    id: int
    object: Literal["log"] = "log"
    job_id: str
    slot_id: str
    lease_id: str
    attempt: int
    at: float
    line: str


def log_view(line: LogLine) -> LogView:
    """A log line as JSON."""
    return LogView(
        id=line.id or 0,
        job_id=line.job_id,
        slot_id=line.slot_id,
        lease_id=line.lease_id,
        attempt=line.attempt,
        at=line.at,
        line=line.line,
    )


class MetricView(BaseModel):
    """One value of a job's metrics."""

    step: int = Field(description="Training step; for inference, the number of rows done.")
    name: str
    value: float | None = Field(description="None if the value was not finite.")


class MetricList(BaseModel):
    """A job's metrics."""

    object: Literal["list"] = "list"
    data: list[MetricView]


class AttemptView(BaseModel):
    """One attempt of a training. Times are Unix seconds."""

    number: int
    object: Literal["attempt"] = "attempt"
    slot_id: str = Field(description="Where it was led from.")
    slots: list[str] = Field(description="Ids of the slots that computed it, by rank.")
    started_at: float
    ended_at: float | None
    resumed_step: int = Field(
        description="Step of the checkpoint that the attempt resumed from; 0: from the beginning."
    )
    last_step: int
    num_halvings: int = Field(description="How often the micro-batch was halved after running out of memory.")
    end: AttemptEnd | None = Field(description="Why the attempt ended; None while it runs.")
    reason: str | None = Field(description="The end in words.")


def attempt_view(attempt: Attempt, slots: list[str]) -> AttemptView:
    """An attempt as JSON."""
    return AttemptView(slots=slots, **attempt.model_dump(include=set(AttemptView.model_fields) - {"object", "slots"}))


class ArtifactView(BaseModel):
    """A file that a job made."""

    name: str
    object: Literal["artifact"] = "artifact"
    bytes: int
    sha256: str
    created_at: float


def artifact_view(artifact: Artifact) -> ArtifactView:
    """An artifact as JSON."""
    return ArtifactView(
        name=artifact.name, bytes=artifact.num_bytes, sha256=artifact.sha256, created_at=artifact.created_at
    )


class SlotView(BaseModel):
    """One accelerator or CPU share, and what it does now."""

    id: str
    object: Literal["slot"] = "slot"
    host: str
    device: str
    device_uuid: str | None
    name: str
    memory_bytes: int
    num_threads: int
    state: SlotState
    reason: str | None = Field(description="Why it is not online.")
    warm_models: list[str] = Field(
        description="Models that the runner keeps loaded, most recently used last; only those of jobs the key sees."
    )
    activity: str | None = Field(description="What the slot does for that job, according to its last heartbeat.")
    activity_at: float | None = Field(description="When that began.")
    job_id: str | None = Field(description="The job that the slot works on, if the key sees it.")
    lease_id: str | None = Field(description="Null while the slot is idle.")
    registered_at: float
    heartbeat_at: float


def _slot_activity(lease: Lease) -> SlotActivity:
    """What a live lease's runner does, as its heartbeats report it."""
    words, since = "getting ready", lease.activated_at or lease.granted_at
    if lease.state == LeaseState.GRANTED:
        rung = f", rung {lease.rings} times" if lease.rings > 1 else ""
        words = f"waiting for the slot's worker to answer{rung}"
    elif lease.activity is not None and lease.activity_at is not None:
        words, since = lease.activity, lease.activity_at
    return SlotActivity(slot_id=lease.slot_id, activity=words, since=since)


def slot_view(slot: Slot, lease: Lease | None, *, job_id: str | None, warm_models: list[str]) -> SlotView:
    """A slot as JSON, with its live lease and what the key may see of its job and warm models."""
    shown = None if lease is None or job_id is None else _slot_activity(lease)
    return SlotView(
        id=slot.id,
        host=slot.host,
        device=slot.device,
        device_uuid=slot.device_uuid,
        name=slot.name,
        memory_bytes=slot.memory_bytes,
        num_threads=slot.num_threads,
        state=slot.state,
        reason=slot.reason,
        warm_models=warm_models,
        activity=None if shown is None else shown.activity,
        activity_at=None if shown is None else shown.since,
        job_id=job_id,
        lease_id=None if lease is None else lease.id,
        registered_at=slot.registered_at,
        heartbeat_at=slot.heartbeat_at,
    )


class FileView(BaseModel):
    """An uploaded file in OpenAI's format. Times are whole Unix seconds."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed"] = Field(
        default="processed", description="`uploaded` is the output file of a running batch: readable and growing."
    )
    expires_at: int | None


def file_view(file: StoredFile) -> FileView:
    """A file as JSON."""
    return FileView(
        id=file.id,
        bytes=file.num_bytes,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
        expires_at=None if file.expires_at is None else int(file.expires_at),
    )


class DeletedFile(BaseModel):
    """The response to a deletion, in OpenAI's format."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class Schema(BaseModel):
    """The database's schema version, and the one that this release needs."""

    current: str | None
    needed: str


HealthStatus = Literal["ok", "degraded", "unavailable"]


class Health(BaseModel):
    """The health of the service."""

    model_config = ConfigDict(serialize_by_alias=True)

    status: HealthStatus = Field(
        description="`degraded`: jobs are accepted but wait (no Redis or scheduler); `unavailable`: none is accepted."
    )
    version: str
    host_id: str = Field(description="Equal to a client's own value if both see the same files.")
    input_paths: bool = Field(description="Whether inputs may be paths on the server; otherwise clients upload them.")
    database: str = Field(description="`ok`, or what is wrong.")
    db_schema: Schema | None = Field(
        serialization_alias="schema", description="None while the database cannot be reached."
    )
    redis: str = Field(description="`ok`, or what is wrong.")
    scheduler: str = Field(description="`ok`, or what is wrong.")
