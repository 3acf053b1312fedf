"""The states of jobs, chunks, leases, slots, batches and deliveries, each with its table of allowed transitions.

`jobs.db.moves` changes states, and checks the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class JobState(StrEnum):
    """Where a job is in its life."""

    VALIDATING = "validating"  # accepted; the planner counts its rows and cuts chunks
    QUEUED = "queued"  # planned; holds no live lease
    RUNNING = "running"  # at least one lease was granted and chunks are left
    FINALIZING = "finalizing"  # every chunk is done; outputs are being merged
    CANCELLING = "cancelling"  # a cancel was asked for; live leases are being taken back
    COMPLETED = "completed"  # every row has exactly one result
    FAILED = "failed"  # ended by an error; `error_code` and `error_message` say which
    CANCELLED = "cancelled"  # ended by a cancel; finished chunks stay readable
    EXPIRED = "expired"  # its time limit passed; finished chunks stay readable

    @property
    def is_terminal(self) -> bool:
        """Whether the job's life is over."""
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
"""States of a job whose life is not over."""
EXPIRABLE_JOB_STATES = tuple(state for state in JobState if JobState.EXPIRED in JOB_TRANSITIONS[state])
"""States in which a job's time limit ends it."""


class StopReason(StrEnum):
    """Why a lease is to end before its job does, weakest first."""

    YIELD = "yield"  # give the slot back at the next chunk boundary; a training: at the next step
    SHUTDOWN = "shutdown"  # the same, and soon: the worker goes down, or a training must stop with a checkpoint
    CANCEL = "cancel"  # the rest is not wanted any more: stop at the next batch boundary


class ChunkState(StrEnum):
    """Where a chunk is between the input and the results."""

    PENDING = "pending"  # may be claimed once `not_before` has passed
    LEASED = "leased"  # claimed by a live lease
    DONE = "done"  # its results are recorded
    FAILED = "failed"  # given up; its rows carry row errors


CHUNK_TRANSITIONS: Mapping[ChunkState, frozenset[ChunkState]] = {
    ChunkState.PENDING: frozenset({ChunkState.LEASED}),
    ChunkState.LEASED: frozenset({ChunkState.PENDING, ChunkState.DONE, ChunkState.FAILED}),
    ChunkState.DONE: frozenset(),
    ChunkState.FAILED: frozenset(),
}


class LeaseState(StrEnum):
    """Where a lease is between its grant and its end."""

    GRANTED = "granted"  # written; its slot's doorbell is ringing
    ACTIVE = "active"  # a keeper holds it and renews it
    RELEASED = "released"  # given back in order
    EXPIRED = "expired"  # not activated or not renewed in time, or its holder died
    REVOKED = "revoked"  # taken back: cancel, preemption or the job's end


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

    COMPLETED = "completed"  # every step is done, and what came of them is recorded
    PREEMPTED = "preempted"  # its slot was asked back for another job
    SHUTDOWN = "shutdown"  # its worker went down in order
    CANCELLED = "cancelled"  # the job was cancelled
    TIME_LIMIT = "time_limit"  # the job's time limit passed
    OUT_OF_MEMORY = "out_of_memory"  # the device had too little memory
    USER_ERROR = "user_error"  # the job itself is at fault
    MACHINE = "machine"  # a process or a service failed
    LOST = "lost"  # its lease was not renewed: the worker or its host is gone


class SlotState(StrEnum):
    """Whether a slot can be given work."""

    ONLINE = "online"  # its worker is up and its heartbeat is fresh
    OFFLINE = "offline"  # its worker is gone or has fallen silent
    UNHEARD = "unheard"  # its worker is up, but did not answer its doorbell; it gets nothing until it is known to hear
    BROKEN = "broken"  # its runner cannot start; `reason` says why


SLOT_TRANSITIONS: Mapping[SlotState, frozenset[SlotState]] = {
    SlotState.ONLINE: frozenset({SlotState.OFFLINE, SlotState.UNHEARD, SlotState.BROKEN}),
    SlotState.OFFLINE: frozenset({SlotState.ONLINE, SlotState.BROKEN}),  # what a silent worker says first may be either
    SlotState.UNHEARD: frozenset({SlotState.ONLINE, SlotState.OFFLINE, SlotState.BROKEN}),
    SlotState.BROKEN: frozenset({SlotState.ONLINE, SlotState.OFFLINE}),
}


class BatchState(StrEnum):
    """Where a batch of OpenAI's contract is in its life; the values are that contract's own."""

    VALIDATING = "validating"  # accepted; its lines are being checked and split by model
    FAILED = "failed"  # its lines, or every job made of them, could not be used; `errors` says why
    IN_PROGRESS = "in_progress"  # its jobs are queued or run
    FINALIZING = "finalizing"  # every job has ended; the output files are being written
    COMPLETED = "completed"  # each line has its answer or its error
    EXPIRED = "expired"  # its window ended first; what was done is in the output file
    CANCELLING = "cancelling"  # a cancel was asked for; its jobs are ending
    CANCELLED = "cancelled"  # ended by a cancel; what was done is in the output file

    @property
    def is_terminal(self) -> bool:
        """Whether the batch's life is over."""
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
"""States of a batch whose life is not over."""


class DeliveryState(StrEnum):
    """Where one webhook delivery is."""

    PENDING = "pending"  # to be sent once `not_before` has passed
    DELIVERED = "delivered"  # the receiver answered with a 2xx
    FAILED = "failed"  # given up after the last try


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
