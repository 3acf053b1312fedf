"""The stages before the device, each in its own thread: claim and read chunks, tokenize them, pack batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from jobs.config.activities import Activity
from jobs.config.times import RetryTimes
from jobs.data.rows import Row
from jobs.data.sources import Source
from jobs.db.database import Database
from jobs.errors import InvalidInput, MachineError
from jobs.ledger import chunks
from jobs.ledger.chunks import Claim
from jobs.ledger.leases import WorkingLease
from worker.device import one_line
from worker.inference.chunks import OpenChunk, RowBatch
from worker.inference.claiming import ClaimWindow, chunks_to_claim
from worker.inference.engine import InferenceEngine
from worker.inference.stages import Channel, Closed, Stages
from worker.wire.pulse import Pulse

logger = logging.getLogger(__name__)

_CHUNKS_READ = 2
_CHUNKS_TOKENIZED = 1
_BATCHES_AHEAD = 4


class Feed:
    """Claims chunks of one lease and supplies their batches; prepares the next ones while one is computed."""

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
        self._tokenized_chunks: Channel[OpenChunk] = Channel(_CHUNKS_TOKENIZED)
        self._batches: Channel[RowBatch] = Channel(_BATCHES_AHEAD)
        self._stages = Stages("feed-", self._cancel)

    def start(self) -> None:
        """Start claiming."""
        self._stages.start(self._read, self._tokenize, self._collate)

    def next(self, give_up: Callable[[], bool]) -> RowBatch | None:
        """Wait for the next batch and return it. Batches come chunk by chunk.

        Args:
            give_up: Called first and after each `wake`; True ends the wait.

        Returns:
            The batch. None if there is nothing left to claim, a stage failed (`close` returns the error), or `give_up`
            returned True.
        """
        try:
            return self._batches.get(give_up)
        except Closed:
            return None

    @property
    def is_behind(self) -> bool:
        """Whether `next` would have to wait now."""
        return self._batches.is_empty

    def wake(self) -> None:
        """Make a waiting `next` call its `give_up` again."""
        self._batches.wake()

    def close(self) -> BaseException | None:
        """End all stages and wait for them.

        Returns:
            The exception that ended one of them, or None.
        """
        self._cancel()
        return self._stages.join()

    def _cancel(self) -> None:
        self._window.close()
        for channel in (self._read_chunks, self._tokenized_chunks, self._batches):
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

    def _tokenize(self) -> None:
        try:
            for chunk in self._read_chunks:
                with self._pulse.doing(Activity.ENCODE, chunk=chunk.start_row):
                    encoded = self._engine.encode(chunk.rows)
                for one in encoded:
                    if one.error is not None:
                        chunk.settle(one.row, one.error)
                chunk.encoded = [one for one in encoded if one.error is None]
                self._tokenized_chunks.put(chunk)
        finally:
            self._tokenized_chunks.finish()

    def _collate(self) -> None:
        try:
            for chunk in self._tokenized_chunks:
                with self._pulse.doing(Activity.ENCODE, chunk=chunk.start_row):
                    batches = self._engine.batches(chunk.encoded)
                if not batches:
                    self._batches.put(RowBatch(chunk, (), None, is_last=True))
                for number, members in enumerate(batches, start=1):
                    with self._pulse.doing(Activity.ENCODE, chunk=chunk.start_row):
                        collated = self._engine.collate(members)
                    self._batches.put(RowBatch(chunk, members, collated, is_last=number == len(batches)))
        finally:
            self._batches.finish()

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
            failure = error if isinstance(error, MachineError) else MachineError(f"reading failed: {one_line(error)}")
            logger.warning("rows %d to %d: %s", claim.start_row, claim.stop_row - 1, failure.message)
            chunks.fail(self._database, self._lease.lease_id, claim.start_row, failure, self._retries)
            self._window.settled([claim.start_row])
            return None
        if [row.row_index for row in rows] != list(range(claim.start_row, claim.stop_row)):
            raise InvalidInput(
                f"the input changed after the job was submitted: rows {claim.start_row} to {claim.stop_row - 1} "
                "are not where they were"
            )
        return OpenChunk(claim, rows)
