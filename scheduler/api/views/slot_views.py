"""A slot as JSON, and what it does for a job."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from jobs.db.states import LeaseState, SlotState
from jobs.db.tables import Lease, Slot


class SlotActivity(BaseModel):
    """What one of a job's slots does, according to its last heartbeat."""

    slot_id: str
    activity: str = Field(
        description="A phrase such as `loading the model`, `computing rows from 512`, `training step 6`."
    )
    since: float = Field(description="When this activity began, Unix seconds.")


def slot_activity(lease: Lease) -> SlotActivity:
    """What a live lease's runner does, as its heartbeats report it."""
    activity, since = "starting", lease.activated_at or lease.granted_at
    if lease.state == LeaseState.GRANTED:
        rings = f", notified {lease.rings} times" if lease.rings > 1 else ""
        activity = f"waiting for the slot's worker to respond{rings}"
    elif lease.activity is not None and lease.activity_at is not None:
        activity, since = lease.activity, lease.activity_at
    return SlotActivity(slot_id=lease.slot_id, activity=activity, since=since)


class SlotView(BaseModel):
    """One accelerator or CPU share, and what it does now."""

    id: str
    object: Literal["slot"] = "slot"
    host: str
    device: str
    device_uuid: str | None
    name: str
    memory_bytes: int
    labels: list[str] = Field(description="Labels that the operator gave the slot's host.")
    num_threads: int
    state: SlotState
    reason: str | None = Field(description="Why the slot is not online.")
    warm_models: list[str] = Field(
        description="Loaded models, most recently used last; only those of jobs that the key can access."
    )
    activity: str | None = Field(
        description="What the slot does for the job `job_id`, according to its last heartbeat."
    )
    activity_at: float | None = Field(description="When this activity began, Unix seconds.")
    job_id: str | None = Field(description="Id of the job that the slot works on, if the key can access it.")
    lease_id: str | None = Field(description="Null while the slot is idle.")
    registered_at: float
    heartbeat_at: float


def slot_view(slot: Slot, lease: Lease | None, *, job_id: str | None, warm_models: list[str]) -> SlotView:
    """A slot as JSON, with its live lease and what the key may see of its job and warm models."""
    shown = None if lease is None or job_id is None else slot_activity(lease)
    return SlotView(
        id=slot.id,
        host=slot.host,
        device=slot.device,
        device_uuid=slot.device_uuid,
        name=slot.name,
        memory_bytes=slot.memory_bytes,
        labels=slot.labels or [],
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
