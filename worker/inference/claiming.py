"""Which chunks of its job this runner holds, and when it should claim more: enough to never wait, too few to hoard."""

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
    """How much more a runner would claim now."""

    num_chunks: int
    """At the speed seen so far; at least 1."""
    idle: bool
    """Whether the device has nothing at all to do until something is claimed."""


class ClaimWindow:
    """The claimed chunks of one lease, shared by the threads that claim, compute and commit."""

    def __init__(self, chunk_seconds: float) -> None:
        """
        Args:
            chunk_seconds: work to hold ahead of the device, at the speed it shows.
        """
        self._chunk_seconds = chunk_seconds
        self._changed = threading.Condition()
        self._ahead: dict[int, int] = {}
        """First row -> rows, of chunks that the device has not begun."""
        self._begun: set[int] = set()
        """First rows of chunks that are computed but not yet recorded, or being computed."""
        self._rows_per_second = 0.0
        self._rows_per_chunk = 0
        self._idle = False
        self._closed = False

    def claimed(self, claims: Iterable[Claim]) -> None:
        """These chunks are ours now."""
        with self._changed:
            for claim in claims:
                num_rows = claim.stop_row - claim.start_row
                self._ahead[claim.start_row] = num_rows
                # The largest seen: halves of a chunk that was cut must not make whole ones look small.
                self._rows_per_chunk = max(self._rows_per_chunk, num_rows)

    def begun(self, start_row: int) -> None:
        """The device starts on this chunk."""
        with self._changed:
            self._ahead.pop(start_row, None)
            self._begun.add(start_row)
            self._idle = False
            self._changed.notify_all()

    def waiting(self) -> None:
        """The device is done with all that was tokenized, until the next `begun`."""
        with self._changed:
            self._idle = True
            self._changed.notify_all()

    def settled(self, start_rows: Iterable[int]) -> None:
        """These chunks are recorded, or their failure is: they are not ours any more."""
        with self._changed:
            for start_row in start_rows:
                self._ahead.pop(start_row, None)
                self._begun.discard(start_row)
            self._changed.notify_all()

    def outstanding(self) -> list[int]:
        """First rows of the chunks that are still ours, in row order."""
        with self._changed:
            return sorted({*self._ahead, *self._begun})

    def computed(self, num_rows: int, seconds: float) -> None:
        """Note the device's speed: a chunk of `num_rows` took this long."""
        rows_per_second = num_rows / max(seconds, 1e-6)
        with self._changed:
            before = self._rows_per_second or rows_per_second
            self._rows_per_second = (before + rows_per_second) / 2  # the last few chunks count most
            self._changed.notify_all()

    def wait_for_request(self, *, only_when_idle: bool) -> ClaimRequest | None:
        """Block until more should be claimed.

        Args:
            only_when_idle: wait until the device has nothing left, as there is little or nothing to claim.

        Returns:
            How much, or None once closed.
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
        """Claim nothing any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wanted(self) -> int:
        """Chunks to hold ahead of the one that is computed."""
        if not self._rows_per_chunk:
            return 1
        return max(1, int(self._chunk_seconds * self._rows_per_second / self._rows_per_chunk))


def fair_share(database: Database, job_id: str, *, most: int) -> int:
    """How many of a job's pending chunks one of its leases may hold ahead without leaving another slot idle.

    Near the end each of n leases takes the n-th part of what is left, then nothing ahead of its device: the last chunks
    stay pending until a device is free for them.

    Args:
        most: more than this is not asked for.
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
    """How many chunks to claim now: the request, cut down where other slots need work too; 0 to wait."""
    if request.idle and request.num_chunks == 1:
        return 1  # nothing to weigh: spare the look at the database
    share = fair_share(database, job_id, most=request.num_chunks)
    return max(1, share) if request.idle else share
