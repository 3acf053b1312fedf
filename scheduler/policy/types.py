"""What the policy is told and what it answers: plain values, and the order in which jobs come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.ledger.leases import Grant

AGED_SECONDS = 24 * 3600.0
"""A job that waited this long counts as one class higher."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A queued or running job."""

    id: str
    rank: int
    """Its class; 0 is served first."""
    created_at: float
    """Unix seconds."""
    waited_seconds: float = 0.0
    """How long it has waited for its first slot; for a job that holds slots, how long it had waited for the oldest."""
    elastic: bool = True
    """Whether any number of slots serves it and each can be taken back at a chunk boundary; a training is not."""
    gang_size: int = 1
    """Slots it needs at once; 1 for an elastic job."""
    max_slots: int | None = None
    """Most slots an elastic job may hold."""
    pending_chunks: int = 0
    """Chunks that could be claimed now; counting on beyond the number of slots changes nothing."""
    model_key: str = ""
    """Equal to a slot's warm model where that slot need not load it."""
    not_before: float = 0.0
    """Unix seconds before which it gets nothing (backoff)."""
    preemptable_seconds: float = 300.0
    """How long a training must have had its slots before another job may have them."""
    num_preemptions: int = 0
    """How often it has given its slots up to another job."""


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot that is online."""

    id: str
    host: str
    warm_models: tuple[str, ...] = ()
    kind: str = ""
    """What device it is; those of a gang are all alike."""


@dataclass(frozen=True, slots=True)
class LeaseView:
    """A live lease. Its slot may be missing from the slots (offline) and its job from the jobs (ending)."""

    id: str
    job_id: str
    slot_id: str
    granted_at: float
    """Unix seconds."""
    working: bool = True
    """Whether its holder has claimed a chunk; a fresh lease has not, and will take one of the pending ones."""
    ending: bool = False
    """Whether it was asked to yield already, or its job is over: its slot comes back by itself."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What to do now."""

    grants: tuple[Grant, ...] = ()
    """In the order of importance. A gang is one grant; each slot of an elastic job is a grant of its own."""
    yields: tuple[str, ...] = ()
    """Leases to ask back; of a gang, all."""
    explanations: Mapping[str, str] = field(default_factory=dict)
    """Why each job that holds nothing still waits, by job id."""


def effective_rank(job: JobView) -> int:
    """A job's class, one up where it has waited for long."""
    return max(0, job.rank - 1) if job.waited_seconds > AGED_SECONDS else job.rank


def order(job: JobView) -> tuple[int, float, str]:
    """Sorts jobs into the order in which they are served."""
    return effective_rank(job), job.created_at, job.id


def is_ready(job: JobView, now: float) -> bool:
    """Whether a job could use a slot now."""
    return job.not_before <= now and (job.pending_chunks > 0 or not job.elastic)
