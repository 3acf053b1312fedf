"""The states of jobs, chunks, leases, slots, batches and deliveries, each with its table of allowed transitions.

`jobs.db.moves` changes states, and checks the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class JobState(StrEnum):
    """The state of a job."""

    VALIDATING = "validating"  # accepted; the planner counts its rows and cuts chunks
    QUEUED = "queued"  # planned; holds no live lease
    RUNNING = "running"  # at least one lease was granted, and chunks remain
    FINALIZING = "finalizing"  # every chunk is done; outputs are being merged
    CANCELLING = "cancelling"  # a cancel was requested; live leases are being revoked
    COMPLETED = "completed"  # every row has exactly one result
    FAILED = "failed"  # ended by an error; see `error_code` and `error_message`
    CANCELLED = "cancelled"  # ended by a cancel; finished chunks stay readable
    EXPIRED = "expired"  # its time limit passed; finished chunks stay readable

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return not JOB_TRANSITIONS[self]


JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.VALIDATING: frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.FINALIZING, JobState.CANCELLING, JobState.FAILED, JobState.EXPIRED}
    ),
    JobState.FINALIZING: frozenset({JobState.COMPLETED, JobState.FAILED, JobState.EXPIRED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.FAILED}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}
LIVE_JOB_STATES = tuple(state for state in JobState if JOB_TRANSITIONS[state])
"""States of a job that has not ended."""
EXPIRABLE_JOB_STATES = tuple(state for state in JobState if JobState.EXPIRED in JOB_TRANSITIONS[state])
"""States in which a job's time limit ends it."""


class StopReason(StrEnum):
    """Why a lease must end before its job does, the weakest reason first."""

    YIELD = "yield"  # return the slot after the current chunk; for a training, after the current step
    FINISH = "finish"  # more steps of this training are not worth it: its current step becomes its last
    SHUTDOWN = "shutdown"  # return the slot soon: the worker shuts down, or a training must stop with a checkpoint
    CANCEL = "cancel"  # the rest of the work is not needed: stop after the current batch


class ChunkState(StrEnum):
    """The state of a chunk."""

    PENDING = "pending"  # may be claimed once `not_before` has passed
    LEASED = "leased"  # claimed by a live lease
    DONE = "done"  # its results are recorded
    FAILED = "failed"  # no longer retried; its rows have row errors


CHUNK_TRANSITIONS: Mapping[ChunkState, frozenset[ChunkState]] = {
    ChunkState.PENDING: frozenset({ChunkState.LEASED}),
    ChunkState.LEASED: frozenset({ChunkState.PENDING, ChunkState.DONE, ChunkState.FAILED}),
    ChunkState.DONE: frozenset(),
    ChunkState.FAILED: frozenset(),
}


class LeaseState(StrEnum):
    """The state of a lease."""

    GRANTED = "granted"  # recorded; the slot's doorbell is rung
    ACTIVE = "active"  # a keeper holds it and renews it
    RELEASED = "released"  # returned by its holder
    EXPIRED = "expired"  # not activated or renewed in time, or its holder died
    REVOKED = "revoked"  # ended by a cancel, a preemption or the end of the job


LEASE_TRANSITIONS: Mapping[LeaseState, frozenset[LeaseState]] = {
    LeaseState.GRANTED: frozenset({LeaseState.ACTIVE, LeaseState.EXPIRED, LeaseState.REVOKED}),
    LeaseState.ACTIVE: frozenset({LeaseState.RELEASED, LeaseState.EXPIRED, LeaseState.REVOKED}),
    LeaseState.RELEASED: frozenset(),
    LeaseState.EXPIRED: frozenset(),
    LeaseState.REVOKED: frozenset(),
}
LIVE_LEASE_STATES = (LeaseState.GRANTED, LeaseState.ACTIVE)
"""States in which a lease still occupies its slot."""


class AttemptEnd(StrEnum):
    """Why an attempt of a training job ended."""

    COMPLETED = "completed"  # all steps are done and the artifacts are recorded
    PREEMPTED = "preempted"  # its slot was needed for another job
    SHUTDOWN = "shutdown"  # its worker shut down properly
    CANCELLED = "cancelled"  # the job was cancelled
    TIME_LIMIT = "time_limit"  # the job's time limit passed
    OUT_OF_MEMORY = "out_of_memory"  # the device had too little memory
    USER_ERROR = "user_error"  # the job itself is invalid or fails
    MACHINE = "machine"  # a process or a service failed
    LOST = "lost"  # its lease was not renewed: the worker or its host is gone


class SlotState(StrEnum):
    """The state of a slot, which says whether it can receive work."""

    ONLINE = "online"  # its worker is up and its heartbeat is fresh
    OFFLINE = "offline"  # its worker is gone or has sent no heartbeat
    UNHEARD = "unheard"  # its worker is up but does not respond to its doorbell; it gets no work until it does
    BROKEN = "broken"  # its runner cannot start; see `reason`


SLOT_TRANSITIONS: Mapping[SlotState, frozenset[SlotState]] = {
    SlotState.ONLINE: frozenset({SlotState.OFFLINE, SlotState.UNHEARD, SlotState.BROKEN}),
    SlotState.OFFLINE: frozenset({SlotState.ONLINE, SlotState.BROKEN}),  # a worker that returns may report either
    SlotState.UNHEARD: frozenset({SlotState.ONLINE, SlotState.OFFLINE, SlotState.BROKEN}),
    SlotState.BROKEN: frozenset({SlotState.ONLINE, SlotState.OFFLINE}),
}


class BatchState(StrEnum):
    """The state of a batch, with the values of OpenAI's API."""

    VALIDATING = "validating"  # accepted; its lines are being checked and split by model
    FAILED = "failed"  # its lines are invalid, or none of its jobs could run; see `errors`
    IN_PROGRESS = "in_progress"  # its jobs are queued or running
    FINALIZING = "finalizing"  # every job has ended; the output files are being written
    COMPLETED = "completed"  # each line has a result or an error
    EXPIRED = "expired"  # its completion window ended; finished lines are in the output file
    CANCELLING = "cancelling"  # a cancel was requested; its jobs are ending
    CANCELLED = "cancelled"  # ended by a cancel; finished lines are in the output file

    @property
    def is_terminal(self) -> bool:
        """Whether the batch has ended."""
        return not BATCH_TRANSITIONS[self]


BATCH_TRANSITIONS: Mapping[BatchState, frozenset[BatchState]] = {
    BatchState.VALIDATING: frozenset(
        {BatchState.IN_PROGRESS, BatchState.FAILED, BatchState.CANCELLED, BatchState.EXPIRED}
    ),
    BatchState.IN_PROGRESS: frozenset({BatchState.FINALIZING, BatchState.CANCELLING}),
    BatchState.FINALIZING: frozenset({BatchState.COMPLETED, BatchState.EXPIRED, BatchState.FAILED}),
    BatchState.CANCELLING: frozenset({BatchState.CANCELLED}),
    BatchState.COMPLETED: frozenset(),
    BatchState.FAILED: frozenset(),
    BatchState.EXPIRED: frozenset(),
    BatchState.CANCELLED: frozenset(),
}
LIVE_BATCH_STATES = tuple(state for state in BatchState if BATCH_TRANSITIONS[state])
"""States of a batch that has not ended."""


class DeliveryState(StrEnum):
    """The state of a webhook delivery."""

    PENDING = "pending"  # will be sent once `not_before` has passed
    DELIVERED = "delivered"  # the receiver responded with a 2xx
    FAILED = "failed"  # the last try failed


DELIVERY_TRANSITIONS: Mapping[DeliveryState, frozenset[DeliveryState]] = {
    DeliveryState.PENDING: frozenset({DeliveryState.DELIVERED, DeliveryState.FAILED}),
    DeliveryState.DELIVERED: frozenset(),
    DeliveryState.FAILED: frozenset(),
}

TRANSITIONS: Mapping[type[StrEnum], Mapping[Any, frozenset[Any]]] = {
    JobState: JOB_TRANSITIONS,
    ChunkState: CHUNK_TRANSITIONS,
    LeaseState: LEASE_TRANSITIONS,
    SlotState: SLOT_TRANSITIONS,
    BatchState: BATCH_TRANSITIONS,
    DeliveryState: DELIVERY_TRANSITIONS,
}
"""The transition table of each kind of state."""
