"""Input and output values of the scheduling policy, and the order of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.ledger.leasing.grants import Grant
from jobs.specs.needs import NO_NEEDS, Needs

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
    """When the job was submitted, or became ready if it had to wait for a time or another job. Unix seconds."""
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
    """One of a slot's `warm_models` if that slot has the model loaded."""
    not_before: float = 0.0
    """The job gets no slot before this time (backoff), Unix seconds."""
    preemptable_seconds: float = 300.0
    """Minimum seconds that a training keeps its slots before it may be preempted."""
    num_preemptions: int = 0
    """How often the job was preempted."""
    remaining_seconds: float | None = None
    """Most seconds for which it still keeps its slots once it has them; None if unknown."""
    needs: Needs = NO_NEEDS
    """What its slots must have."""
    project: str = ""
    entitled: int = 0
    """Slots that an elastic job needs to keep a promise; it gets these before others of its priority get any."""
    work_seconds: float | None = None
    """Slot-seconds that an elastic job probably still takes, without loading; None if unknown."""
    loading_seconds: Mapping[str, float] = field(default_factory=dict)
    """Kind of device -> seconds in which a slot loads the job's model; kinds that are missing are unknown."""


@dataclass(frozen=True, slots=True)
class ProjectFacts:
    """What a project is entitled to, and what it has used."""

    weight: float = 1.0
    """Its part of the slots that several projects want; with 0, it gets those that no other can use."""
    used: float = 0.0
    """Slots that it has used on average lately: slot-seconds that decay, times ln 2, divided by their half-life."""
    slots: int | None = None
    """Number of slots that it gets before others, and that its trainings may hold at most; None: neither."""
    is_exhausted: bool = False
    """Whether it has used its GPU hours, and gets no slots."""


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """A slot that is online."""

    id: str
    host: str
    warm_models: tuple[str, ...] = ()
    kind: str = ""
    """Kind of device; all slots of a gang have the same."""
    packages: frozenset[str] | None = None
    """Optional packages that the host has; None if unknown, which counts as all."""
    kept_for: str | None = None
    """Id of the job for which the slot's last lease was asked to yield, until a little after that lease has ended."""
    memory_bytes: int = 0
    device: str = ""
    """`cuda` or `cpu`."""
    labels: frozenset[str] = frozenset()
    """Labels of the host."""

    def scarcity(self, needs: Needs) -> tuple[int, bool, int]:
        """How much the slot has beyond a job's needs, which other jobs may need more; the least is taken first.

        Memory counts to a factor of two, since equal devices differ a little.
        """
        num_spare = len((self.packages or frozenset()) - needs.packages) + len(self.labels - needs.labels)
        return num_spare, self.device == "cpu", self.memory_bytes.bit_length()


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
    yield_for: str | None = None
    """Id of the job for which it was asked to yield."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Slots of one host on which no training may start that could delay a gang."""

    job_id: str
    slot_ids: tuple[str, ...]
    at: float | None
    """When the gang can have them at the latest, Unix seconds; None if unknown."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """The decisions to carry out now."""

    grants: tuple[Grant, ...] = ()
    """Grants in order of importance. A gang is one grant; each slot of an elastic job is a separate grant."""
    yields: Mapping[str, str] = field(default_factory=dict)
    """Id of each lease to ask to yield -> id of the job for which it is asked; all leases of a gang."""
    reservation: Reservation | None = None
    """The slots that are reserved for the first gang that must wait for trainings to end."""
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
