"""The stages before the device, each in its own thread: claim and read chunks, encode rows into groups, collate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter

from jobs.config.activities import Activity
from jobs.config.times import RetryTimes
from jobs.data.rows import Row
from jobs.data.sources import Source
from jobs.db.database import Database
from jobs.errors import InvalidInput, MachineError
from jobs.ledger import chunks
from jobs.ledger.chunks import Claim
from jobs.ledger.leasing.leases import WorkingLease
from jobs.messages import one_line
from worker.inference.chunks import BatchGroup, OpenChunk
from worker.inference.claim_window import ClaimWindow, chunks_to_claim
from worker.inference.engine import InferenceEngine
from worker.inference.stages import Channel, Closed, Stages
from worker.models.task_model import Encoded
from worker.wire.pulse import Pulse

logger = logging.getLogger(__name__)

_CHUNKS_READ = 2
"""Most chunks that are read and wait to be encoded."""
_GROUPS_ENCODED = 16
"""Most groups that wait to be collated."""
_GROUPS_COLLATED = 4
"""Most groups that wait for the device."""
_MOST_BYTES = 512 * 2**20
"""Most memory of the encoded rows, and again of the collated ones, that wait for the device."""


class Feed:
    """Claims chunks of one lease and supplies their groups of batches; prepares the next ones while one is computed."""

    def __init__(
        self,
        lease: WorkingLease,
        *,
        database: Database,
        retries: RetryTimes,
        source: Source,
        engine: InferenceEngine,
        window: ClaimWindow,
        pulse: Pulse,
    ) -> None:
        self._lease = lease
        self._database = database
        self._retries = retries
        self._source = source
        self._engine = engine
        self._window = window
        self._pulse = pulse
        self._read_chunks: Channel[OpenChunk] = Channel(_CHUNKS_READ)
        size = attrgetter("num_bytes")
        self._encoded: Channel[BatchGroup] = Channel(_GROUPS_ENCODED, most_bytes=_MOST_BYTES, size=size)
        self._groups: Channel[BatchGroup] = Channel(_GROUPS_COLLATED, most_bytes=_MOST_BYTES, size=size)
        self._stages = Stages("feed-", self._cancel, begin=engine.begin_thread)

    def start(self) -> None:
        """Start claiming."""
        self._stages.start(self._read, self._encode, self._collate)

    def next(self, give_up: Callable[[], bool]) -> BatchGroup | None:
        """Wait for the next group and return it. Groups come chunk by chunk.

        Args:
            give_up: Called first and after each `wake`; True ends the wait.

        Returns:
            The group. None if there is nothing left to claim, a stage failed (`close` returns the error), or `give_up`
            returned True.
        """
        try:
            return self._groups.get(give_up)
        except Closed:
            return None

    @property
    def is_behind(self) -> bool:
        """Whether `next` would have to wait now."""
        return self._groups.is_empty

    def wake(self) -> None:
        """Make a waiting `next` call its `give_up` again."""
        self._groups.wake()

    def close(self) -> BaseException | None:
        """End all stages and wait for them.

        Returns:
            The exception that ended one of them, or None.
        """
        self._cancel()
        return self._stages.join()

    def _cancel(self) -> None:
        self._window.close()
        for channel in (self._read_chunks, self._encoded, self._groups):
            channel.cancel()

    # -- the stages

    def _read(self) -> None:
        try:
            for claim in self._claims():
                with self._pulse.doing(Activity.READ, chunk=claim.start_row):
                    chunk = self._read_chunk(claim)
                if chunk is not None:
                    self._read_chunks.put(chunk)
        finally:
            self._read_chunks.finish()

    def _encode(self) -> None:
        try:
            for chunk in self._read_chunks:
                groups = self._engine.groups(self._computable(chunk))
                batches = self._next_group(groups, chunk)
                while (following := self._next_group(groups, chunk)) is not None:
                    self._encoded.put(_group(chunk, batches or (), is_last=False))
                    batches = following
                self._encoded.put(_group(chunk, batches or (), is_last=True))
        finally:
            self._engine.close_encoder()
            self._encoded.finish()

    def _next_group(
        self, groups: Iterator[Sequence[Sequence[Encoded]]], chunk: OpenChunk
    ) -> Sequence[Sequence[Encoded]] | None:
        with self._pulse.doing(Activity.ENCODE, chunk=chunk.start_row):
            return next(groups, None)

    def _computable(self, chunk: OpenChunk) -> Iterator[Encoded]:
        """Encode the rows of a chunk, and settle those that cannot be computed."""
        for one in self._engine.encode(chunk.rows, partial(self._following_rows, chunk)):
            if one.num_bytes or one.error is not None:  # rows that are large or fail may take long; this is progress
                self._pulse.at(Activity.ENCODE, chunk=chunk.start_row)
            if one.error is not None:
                chunk.set_result(one.row, one.error)
            else:
                yield one

    def _following_rows(self, chunk: OpenChunk) -> Sequence[Row]:
        """The rows of the chunk after this one, if it is read already.

        A crash counts against the chunk that the thread reports. So that none is blamed twice for the rows of another
        one, chunks that were blamed before are encoded by themselves.
        """
        following = self._read_chunks.peek()
        if following is None or chunk.claim.crashes or following.claim.crashes:
            return ()
        return following.rows

    def _collate(self) -> None:
        try:
            for one in self._encoded:
                if one.batches:
                    with self._pulse.doing(Activity.ENCODE, chunk=one.chunk.start_row):
                        one = replace(one, collated=[self._engine.collate(batch) for batch in one.batches])
                self._groups.put(one)
        finally:
            self._groups.finish()

    # -- claiming and reading

    def _claims(self) -> Iterator[Claim]:
        """Claim chunks as the device needs them, until it is idle and there is nothing left to claim."""
        only_when_idle = False
        while (request := self._window.wait_for_request(only_when_idle=only_when_idle)) is not None:
            limit = chunks_to_claim(request, self._database, self._lease.job_id)
            claims = chunks.claim(self._database, self._lease.lease_id, limit=limit) if limit else []
            self._window.claimed(claims)
            if not claims and request.idle:
                return
            # With little left, try again only when the device is free: other slots may claim chunks or give some back.
            only_when_idle = not claims
            yield from claims

    def _read_chunk(self, claim: Claim) -> OpenChunk | None:
        """Read a chunk's rows. If a machine error prevents that, record the failure and return None."""
        try:
            rows: list[Row] = list(self._source.read(claim.start_row, claim.stop_row, claim.locator))
        except (OSError, MachineError) as error:
            failure = (
                error
                if isinstance(error, MachineError)
                else MachineError(f"the input cannot be read: {one_line(error)}")
            )
            logger.warning("rows %d to %d: %s", claim.start_row, claim.stop_row - 1, failure.message)
            chunks.fail(self._database, self._lease.lease_id, claim.start_row, failure, self._retries)
            self._window.recorded([claim.start_row])
            return None
        if [row.row_index for row in rows] != list(range(claim.start_row, claim.stop_row)):
            raise InvalidInput(
                f"the input changed after the job was submitted: rows {claim.start_row} to {claim.stop_row - 1} "
                "are no longer in the same place; submit the job again"
            )
        return OpenChunk(claim, rows)


def _group(chunk: OpenChunk, batches: Sequence[Sequence[Encoded]], *, is_last: bool) -> BatchGroup:
    return BatchGroup(chunk, batches, [None] * len(batches), is_last)
