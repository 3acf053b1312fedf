"""The stages after the device: decode outputs into results and commit finished chunks, each in its own thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from sqlalchemy import func, select
from sqlmodel import Session, col

from jobs.config.activities import Activity
from jobs.data.rows import Result, RowError
from jobs.data.sinks import Sink
from jobs.db.database import Database
from jobs.db.states import ChunkState
from jobs.db.tables import Chunk
from jobs.errors import LostLease, MachineError, ServiceUnavailable
from jobs.ledger import chunks
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leasing.leases import WorkingLease
from jobs.ledger.timing.stage_times import StageTimes
from jobs.messages import one_line
from jobs.retries import Backoff
from worker.inference.chunks import ComputedGroup, OpenChunk, Piece
from worker.inference.claim_window import ClaimWindow
from worker.inference.engine import InferenceEngine
from worker.inference.stages import Channel, Stages
from worker.wire.pulse import Pulse

logger = logging.getLogger(__name__)

_GROUPS_COMPUTED = 8
"""Most groups that wait to be decoded."""
_MOST_BYTES = 512 * 2**20
"""Most memory of the groups that wait to be decoded."""
_CHUNKS_DECODED = 32
"""Most finished chunks that wait to be committed, and so the most chunks in one transaction."""
_MOST_ROWS = 8192
"""Most rows in a transaction of several chunks: heartbeats wait for SQLite's write lock while it runs."""
_BACKOFF = Backoff(first_seconds=0.05, longest_seconds=1.0)


@dataclass(slots=True)
class Tally:
    """Counts of what a lease has recorded."""

    num_chunks: int = 0
    num_rows: int = 0
    num_failed: int = 0
    num_tokens: int = 0


class Writer:
    """Collects the outputs of one lease into chunks and records each chunk exactly once."""

    def __init__(
        self,
        lease: WorkingLease,
        *,
        database: Database,
        lease_seconds: float,
        sink: Sink,
        engine: InferenceEngine,
        window: ClaimWindow,
        pulse: Pulse,
        on_failure: Callable[[], None],
        loading_seconds: float = 0.0,
    ) -> None:
        """
        Args:
            lease_seconds: How long to retry recording while the database or the store is unavailable.
            on_failure: Called when nothing more can be recorded, to wake the thread that computes so that it stops.
            loading_seconds: Time that the lease has taken to load its model; 0 if it was warm.
        """
        self._lease = lease
        self._database = database
        self._lease_seconds = lease_seconds
        self._sink = sink
        self._engine = engine
        self._window = window
        self._pulse = pulse
        self._on_failure = on_failure
        self._loading_seconds = loading_seconds
        self._started = time.monotonic()
        self._computed: Channel[ComputedGroup] = Channel(
            _GROUPS_COMPUTED, most_bytes=_MOST_BYTES, size=attrgetter("num_bytes")
        )
        self._finished_chunks: Channel[OpenChunk] = Channel(_CHUNKS_DECODED)
        self._failed = threading.Event()
        self._stages = Stages("writer-", self._cancel, begin=engine.begin_thread)
        self.tally = Tally()
        self.failed_on: int | None = None
        """If copying outputs from the device failed, the first row of their chunk."""

    def start(self) -> None:
        """Start waiting for outputs."""
        self._started = time.monotonic()
        self._stages.start(self._decode, self._commit)

    def put(self, computed: ComputedGroup) -> None:
        """Pass on a computed group, in the order in which `Feed` supplied it; waits while the channel is full.

        Raises:
            Closed: A stage failed; `finish` returns the error.
        """
        self._computed.put(computed)

    def has_room(self, computed: ComputedGroup) -> bool:
        """Whether `put` would not have to wait now."""
        return self._computed.has_room(computed)

    @property
    def has_failed(self) -> bool:
        """Whether nothing more can be recorded; `finish` returns the reason."""
        return self._failed.is_set()

    def finish(self) -> BaseException | None:
        """Record the complete chunks, end both stages and wait for them.

        Returns:
            The exception that ended one of them, or None.
        """
        self._computed.finish()
        return self._stages.join()

    def _cancel(self) -> None:
        self._failed.set()
        self._computed.cancel()
        self._finished_chunks.cancel()
        self._on_failure()

    # -- the stages

    def _decode(self) -> None:
        try:
            for computed in self._computed:
                group = computed.group
                for piece in computed.pieces:
                    with self._pulse.doing(Activity.DECODE, chunk=group.chunk.start_row):
                        outputs = self._decode_piece(group.chunk, piece)
                    for one, output in zip(piece.members, outputs, strict=True):
                        group.chunk.set_result(one.row, output, one.num_tokens)
                if group.is_last:
                    self._finished_chunks.put(group.chunk)
        finally:
            self._finished_chunks.finish()

    def _decode_piece(self, chunk: OpenChunk, piece: Piece) -> list[Any | RowError]:
        try:
            return self._engine.decode(piece)
        except MachineError:
            self.failed_on = chunk.start_row
            raise

    def _commit(self) -> None:
        while True:
            for group in in_groups(self._finished_chunks.get_all()):
                with self._pulse.doing(Activity.COMMIT, chunk=group[0].start_row):
                    self._record([(chunk, chunk.results()) for chunk in group])

    # -- recording

    def _record(self, finished: Sequence[tuple[OpenChunk, list[Result]]]) -> None:
        """Stage and commit finished chunks in one transaction."""
        staged = []
        for chunk, results in finished:
            part = self._patiently(partial(self._stage, chunk, results), finished[0][0].start_row)
            staged.append(ChunkResults(chunk.start_row, chunk.claim.stop_row, results, part))
        everything = [result for _, results in finished for result in results]

        def record(session: Session) -> None:
            self._sink.record(session, self._lease.job_id, everything)

        def commit(tries: int) -> None:
            start_rows = [chunk.start_row for chunk in staged]
            # After a connection lost in COMMIT, the chunks may or may not be recorded: check before retrying.
            if tries == 0 or not is_recorded(self._database, self._lease, start_rows):
                chunks.commit(
                    self._database,
                    self._lease.lease_id,
                    staged,
                    record,
                    self._stage_times(everything),
                    completes=not self._sink.makes_files,
                )

        self._patiently(commit, staged[0].start_row)
        self._window.recorded([chunk.start_row for chunk in staged])
        self.tally.num_chunks += len(staged)
        self.tally.num_rows += len(everything)
        self.tally.num_failed += sum(result.error is not None for result in everything)
        self.tally.num_tokens += sum(result.num_tokens for result in everything)

    def _stage_times(self, recorded: Sequence[Result]) -> StageTimes:
        """Where the time of this lease has gone so far, and what it has done, these results included."""
        usage, seconds = self._engine.usage, self._pulse.seconds
        return StageTimes(
            read=seconds(Activity.READ),
            encode=seconds(Activity.ENCODE),
            wait=max(0.0, time.monotonic() - self._started - usage.seconds),
            forward=usage.seconds,
            decode=seconds(Activity.DECODE),
            commit=seconds(Activity.COMMIT),
            load=self._loading_seconds,
            num_tokens=usage.num_tokens,
            num_padded_tokens=usage.num_padded_tokens,
            num_rows=self.tally.num_rows + len(recorded),
            num_row_tokens=self.tally.num_tokens + sum(result.num_tokens for result in recorded),
        )

    def _stage(self, chunk: OpenChunk, results: Sequence[Result], _tries: int) -> str | None:
        try:
            return self._sink.stage(self._lease.job_id, self._lease.lease_id, chunk.start_row, results)
        except OSError as error:
            raise ServiceUnavailable(f"the results cannot be stored: {one_line(error)}") from error

    def _patiently(self, action: Callable[[int], str | None], first_row: int) -> str | None:
        """Run an action that needs the database or the store, with retries while they are unavailable.

        Retries end after `lease_seconds`: by then the lease may have expired and another runner may have the work.

        Args:
            action: Called with the number of attempts that failed before.
            first_row: First row of what is being recorded, for the pulse.
        """
        until = time.monotonic() + self._lease_seconds
        tries = 0
        while True:
            self._pulse.at(Activity.COMMIT, chunk=first_row)
            try:
                return action(tries)
            except ServiceUnavailable as error:
                tries += 1
                delay_seconds = _BACKOFF.delay_seconds(tries)
                if time.monotonic() + delay_seconds > until:
                    raise
                logger.warning("the results cannot be recorded yet: %s", error.message)
            if self._failed.wait(delay_seconds):
                raise ServiceUnavailable("the results were not recorded, because another part of the pipeline failed")


def in_groups(chunks: Sequence[OpenChunk]) -> list[list[OpenChunk]]:
    """Split finished chunks, in order, into groups that are recorded in one transaction each."""
    groups: list[list[OpenChunk]] = []
    num_rows = 0
    for chunk in chunks:
        num_rows += chunk.num_rows
        if not groups or num_rows > _MOST_ROWS:
            groups.append([])
            num_rows = chunk.num_rows
        groups[-1].append(chunk)
    return groups


def is_recorded(database: Database, lease: WorkingLease, start_rows: Sequence[int]) -> bool:
    """Whether the chunks that this lease tried to commit are recorded, for when the database's reply was lost.

    Raises:
        LostLease: The chunks are neither all recorded by this lease nor all still held by it.
        ServiceUnavailable: The database is still unavailable.
    """
    ours = (
        select(col(Chunk.state), func.count())
        .where(
            col(Chunk.job_id) == lease.job_id,
            col(Chunk.lease_id) == lease.lease_id,
            col(Chunk.start_row).in_(start_rows),
        )
        .group_by(col(Chunk.state))
    )
    with database.read() as session:
        counts = {row[0]: row[1] for row in session.execute(ours)}
    if counts.get(ChunkState.DONE, 0) + counts.get(ChunkState.FAILED, 0) == len(start_rows):
        return True
    if counts.get(ChunkState.LEASED, 0) == len(start_rows):
        return False
    raise LostLease
