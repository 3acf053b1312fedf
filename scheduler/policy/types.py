"""Input and output values of the scheduling policy, and the order of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.ledger.leases import Grant

AGED_SECONDS = 24 * 3600.0
"""A job that has waited this long counts as one priority higher."""

BRIEF_SECONDS = 1.0
"""A training whose backoff ends within this time keeps the slots that it can start on."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A queued or running job."""

    id: str
    rank: int
    """Priority rank; 0 is served first."""
    created_at: float
    """Unix seconds."""
    waited_seconds: float = 0.0
    """Seconds that the job has waited for its first slot; for a job with slots, that it had waited for the oldest."""
    elastic: bool = True
    """Whether the job runs on any number of slots and returns each at a chunk boundary; false for a training."""
    gang_size: int = 1
    """Slots that it needs at once; 1 for an elastic job."""
    max_slots: int | None = None
    """Most slots that an elastic job may hold."""
    pending_chunks: int = 0
    """Chunks that can be claimed now; may be capped at the number of slots."""
    model_key: str = ""
    """Equal to a slot's `warm` entry if that slot has the model loaded."""
    not_before: float = 0.0
    """The job gets no slot before this time (backoff), Unix seconds."""
    preemptable_seconds: float = 300.0
    """Minimum seconds that a training keeps its slots before it may be preempted."""
    num_preemptions: int = 0
    """How often the job was preempted."""


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """A slot that is online."""

    id: str
    host: str
    warm_models: tuple[str, ...] = ()
    kind: str = ""
    """Kind of device; all slots of a gang have the same."""


@dataclass(frozen=True, slots=True)
class LeaseFacts:
    """A live lease. Its slot may be missing (offline), and so may its job (ending)."""

    id: str
    job_id: str
    slot_id: str
    granted_at: float
    """Unix seconds."""
    working: bool = True
    """Whether the lease has claimed a chunk; a fresh lease has not, and will take a pending one."""
    ending: bool = False
    """Whether the lease was asked to yield or its job is over, so that its slot is being returned."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """The decisions to carry out now."""

    grants: tuple[Grant, ...] = ()
    """Grants in order of importance. A gang is one grant; each slot of an elastic job is a separate grant."""
    yields: tuple[str, ...] = ()
    """Leases to ask to yield; all leases of a gang."""
    explanations: Mapping[str, str] = field(default_factory=dict)
    """Job id -> why the job waits, for each job without slots."""


def effective_rank(job: JobFacts) -> int:
    """A job's priority rank, one higher if it has waited long."""
    return max(0, job.rank - 1) if job.waited_seconds > AGED_SECONDS else job.rank


def order(job: JobFacts) -> tuple[int, float, str]:
    """Sort key of the order in which jobs are served."""
    return effective_rank(job), job.created_at, job.id


def is_ready(job: JobFacts, now: float) -> bool:
    """Whether a job can use a slot now."""
    return job.not_before <= now and (job.pending_chunks > 0 or not job.elastic)


def is_soon_ready(job: JobFacts, now: float) -> bool:
    """Whether a training's backoff ends so soon that slots are kept for it."""
    return not job.elastic and now < job.not_before <= now + BRIEF_SECONDS
