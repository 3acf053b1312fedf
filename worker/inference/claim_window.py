"""Track the chunks that a runner holds and decide when it claims more: enough to never wait, but no more than that."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.states import LIVE_LEASE_STATES, ChunkState
from jobs.db.tables import Chunk, Lease
from jobs.ledger.chunks import Claim


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """How many more chunks a runner can use now."""

    num_chunks: int
    """Number of chunks, from the speed measured so far; at least 1."""
    idle: bool
    """Whether the device has no work until a chunk is claimed."""


class ClaimWindow:
    """The claimed chunks of one lease, shared by the threads that claim, compute and commit."""

    def __init__(self, chunk_seconds: float) -> None:
        """
        Args:
            chunk_seconds: Amount of work to hold ahead of the device, in seconds at its measured speed.
        """
        self._chunk_seconds = chunk_seconds
        self._changed = threading.Condition()
        self._ahead: dict[int, int] = {}
        """First row -> number of rows, for each chunk that the device has not begun."""
        self._begun: set[int] = set()
        """First rows of the chunks that are being computed, or are computed but not yet recorded."""
        self._rows_per_second = 0.0
        self._rows_per_chunk = 0
        self._idle = False
        self._closed = False

    def claimed(self, claims: Iterable[Claim]) -> None:
        """Note that the runner now holds these chunks."""
        with self._changed:
            for claim in claims:
                num_rows = claim.stop_row - claim.start_row
                self._ahead[claim.start_row] = num_rows
                # The largest seen, so that the halves of a chunk that was split do not make the estimate too small.
                self._rows_per_chunk = max(self._rows_per_chunk, num_rows)

    def begun(self, start_row: int) -> None:
        """Note that the device starts on this chunk."""
        with self._changed:
            self._ahead.pop(start_row, None)
            self._begun.add(start_row)
            self._idle = False
            self._changed.notify_all()

    def waiting(self) -> None:
        """Note that the device has computed everything tokenized so far; `begun` ends this state."""
        with self._changed:
            self._idle = True
            self._changed.notify_all()

    def recorded(self, start_rows: Iterable[int]) -> None:
        """Note that these chunks, or their failures, are recorded, so that the runner no longer holds them."""
        with self._changed:
            for start_row in start_rows:
                self._ahead.pop(start_row, None)
                self._begun.discard(start_row)
            self._changed.notify_all()

    def outstanding(self) -> list[int]:
        """First rows of the chunks that the runner still holds, in row order."""
        with self._changed:
            return sorted({*self._ahead, *self._begun})

    def computed(self, num_rows: int, seconds: float) -> None:
        """Update the measured speed: a chunk of `num_rows` took this long."""
        rows_per_second = num_rows / max(seconds, 1e-6)
        with self._changed:
            before = self._rows_per_second or rows_per_second
            self._rows_per_second = (before + rows_per_second) / 2  # the last few chunks count most
            self._changed.notify_all()

    def wait_for_request(self, *, only_when_idle: bool) -> ClaimRequest | None:
        """Block until more should be claimed.

        Args:
            only_when_idle: Wait until the device has no work left, because there is little or nothing to claim.

        Returns:
            The request, or None once closed.
        """
        with self._changed:
            while not self._closed:
                idle = self._idle and not self._ahead
                wanted = self._wanted()
                if idle or (not only_when_idle and len(self._ahead) <= wanted // 2):
                    return ClaimRequest(wanted - len(self._ahead), idle)
                self._changed.wait()
            return None

    def close(self) -> None:
        """Stop claiming."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wanted(self) -> int:
        """Number of chunks to hold ahead of the one that is being computed."""
        if not self._rows_per_chunk:
            return 1
        return max(1, int(self._chunk_seconds * self._rows_per_second / self._rows_per_chunk))


def fair_share(database: Database, job_id: str, *, most: int) -> int:
    """Number of a job's pending chunks that one lease may hold ahead without leaving another slot idle.

    Near the end, each of n leases takes 1/n of what is left, and then nothing ahead of its device: the last chunks stay
    pending until a device is free for them.

    Args:
        most: Upper limit of the result.
    """
    live = select(func.count()).where(col(Lease.job_id) == job_id, col(Lease.state).in_(LIVE_LEASE_STATES))
    with database.read() as session:
        num_leases = max(1, session.scalar(live) or 0)
        pending = (
            select(col(Chunk.start_row))
            .where(
                col(Chunk.job_id) == job_id,
                col(Chunk.state) == ChunkState.PENDING,
                col(Chunk.not_before) <= database.now(),
            )
            .limit(most * num_leases)
        )
        num_pending = session.scalar(select(func.count()).select_from(pending.subquery())) or 0
    return min(most, num_pending // num_leases)


def chunks_to_claim(request: ClaimRequest, database: Database, job_id: str) -> int:
    """Number of chunks to claim now: the request, reduced if other slots need work too; 0 means to wait."""
    if request.idle and request.num_chunks == 1:
        return 1  # nothing to decide, so save the database query
    share = fair_share(database, job_id, most=request.num_chunks)
    return max(1, share) if request.idle else share
