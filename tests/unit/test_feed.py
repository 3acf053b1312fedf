"""The feed: every claimed row reaches the device once, and no failure of a stage leaves a thread or a chunk behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.config.settings import Settings
from jobs.data.rows import Row, RowError
from jobs.data.sources import ChunkRange, Source
from jobs.db.database import Database
from jobs.errors import InvalidInput, LostLease, ServiceUnavailable
from jobs.ledger import chunks
from jobs.ledger.chunks import Claim
from jobs.ledger.leasing import leases
from jobs.ledger.leasing.leases import WorkingLease
from tests.conftest import wait_until
from tests.support.leased_job import LeasedJob, threads_of_the_pipeline
from tests.support.scripted_model import ScriptedModel
from worker.inference.budget import Budget
from worker.inference.chunks import BatchGroup, OpenChunk
from worker.inference.claim_window import ClaimWindow, fair_share
from worker.inference.engine import InferenceEngine
from worker.inference.feed import Feed
from worker.inference.stages import Channel
from worker.wire.pulse import Pulse

RECORDS = [{"id": f"r{number}", "text": "word " * (number % 7 + 1) + f"{number}"} for number in range(80)]
"""Ten chunks of eight rows."""


@pytest.fixture
def leased(sqlite_database: Database, settings: Settings, tmp_path: Path) -> LeasedJob:
    """A planned job of ten chunks."""
    return LeasedJob(sqlite_database, settings, tmp_path, RECORDS)


class BrokenSource:
    """A real source that a test can break at a row."""

    def __init__(self, source: Source, at_row: int, fault: Callable[[], object]) -> None:
        self.source, self.at_row, self.fault = source, at_row, fault

    def column_names(self) -> list[str]:
        return self.source.column_names()

    def index(self, chunk_rows: int) -> Iterator[ChunkRange]:
        return self.source.index(chunk_rows)

    def read(self, start_row: int, stop_row: int, locator: dict[str, Any]) -> Iterator[Row]:
        for row in self.source.read(start_row, stop_row, locator):
            if row.row_index == self.at_row and self.fault() == "drop":
                continue
            yield row


class Harness:
    """A feed over a real lease, with a device that accepts every batch."""

    def __init__(
        self,
        leased: LeasedJob,
        *,
        source: Source | None = None,
        chunk_seconds: float = 2.0,
        on_encode: Callable[[Sequence[Row]], None] = lambda rows: None,
    ) -> None:
        self.model = ScriptedModel()
        self.model.on_encode = on_encode
        self.window = ClaimWindow(chunk_seconds)
        self.lease: WorkingLease = leased.lease()
        engine = InferenceEngine(self.model, torch.device("cpu"), Budget(24, 100, 64))
        self.feed = Feed(
            self.lease,
            database=leased.database,
            retries=leased.settings,
            source=source or leased.source(),
            engine=engine,
            window=self.window,
            pulse=Pulse(lambda beat: None),
        )
        self.feed.start()

    def next(self) -> BatchGroup | None:
        """As the forward loop does it."""
        if self.feed.is_behind:
            self.window.waiting()
        following = self.feed.next(lambda: False)
        if following is not None:
            self.window.begun(following.chunk.start_row)
        return following

    def take_all(self) -> list[BatchGroup]:
        """Groups until there are no more."""
        return list(iter(self.next, None))


def test_every_row_comes_once_in_the_order_of_chunks(leased: LeasedJob) -> None:
    """A row that is skipped here is a result that the user never gets."""
    harness = Harness(leased)
    groups = harness.take_all()
    assert harness.feed.close() is None
    batches = [batch for one in groups for batch in one.batches]
    assert sorted(one.row.row_index for batch in batches for one in batch) == list(range(80))
    starts = [one.chunk.start_row for one in groups]
    assert starts == sorted(starts)
    assert [one.chunk.start_row for one in groups if one.is_last] == list(range(0, 80, 8))
    assert all(len(batch) * max(one.num_tokens for one in batch) <= 24 for batch in batches)
    assert threads_of_the_pipeline() == []
    assert harness.window.outstanding() == list(range(0, 80, 8))


def test_a_row_that_cannot_be_tokenized_is_settled_and_not_computed(
    sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """Bad rows cost nothing on the device, and a chunk of nothing but bad rows still completes."""
    records = ["not json", {"id": "b", "text": "too strange"}, {"id": "c", "text": None}, {"id": "d", "text": "fine"}]
    harness = Harness(LeasedJob(sqlite_database, settings, tmp_path, records, chunk_rows=3))
    bad, good = harness.take_all()
    assert harness.feed.close() is None
    assert (bad.batches, bad.is_last) == ((), True)
    errors = [result.error.code for result in bad.chunk.results() if result.error is not None]
    assert len(errors) == 3
    assert errors[1] == "strange"
    assert [one.row.key for batch in good.batches for one in batch] == ["d"]


@pytest.mark.parametrize(("crashes", "num_rows"), [((0, 0), 8), ((1, 0), 0), ((0, 1), 0)])
def test_a_chunk_that_crashed_a_runner_is_encoded_by_itself(
    leased: LeasedJob, crashes: tuple[int, int], num_rows: int
) -> None:
    """Encoding begins with the following chunk early, so a crash could be blamed on the wrong one of the two."""
    harness = Harness(leased)
    harness.take_all()
    assert harness.feed.close() is None
    one, following = (
        OpenChunk(Claim(start, start + 8, {}, 1, number), [Row(row, None, {}) for row in range(start, start + 8)])
        for start, number in zip((0, 8), crashes, strict=True)
    )
    harness.feed._read_chunks = Channel(1)
    assert len(harness.feed._following_rows(one)) == 0
    harness.feed._read_chunks.put(following)
    assert len(harness.feed._following_rows(one)) == num_rows


def test_an_abandoned_chunk_is_not_computed(leased: LeasedJob) -> None:
    """A poison row must not get a further runner to kill; its row error keeps the user's key."""
    leased.set_chunk(8, error='{"code": "poison_row", "message": "it killed two runners"}')
    harness = Harness(leased)
    groups = [one for one in harness.take_all() if one.chunk.start_row == 8]
    assert harness.feed.close() is None
    assert [one.batches for one in groups] == [()]
    results = groups[0].chunk.results()
    assert [result.key for result in results] == [f"r{number}" for number in range(8, 16)]
    assert [result.error for result in results] == [
        RowError("poison_row", "it killed two runners", line) for line in range(9, 17)
    ]


def test_one_row_that_breaks_the_tokenizer_is_found(leased: LeasedJob) -> None:
    """One odd text must not fail the 79 others."""

    def choke(rows: Sequence[Row]) -> None:
        if any(row.row_index == 13 for row in rows):
            raise TypeError("cannot tokenize\nwith a traceback")

    harness = Harness(leased, on_encode=choke)
    groups = harness.take_all()
    assert harness.feed.close() is None
    assert sum(len(batch) for one in groups for batch in one.batches) == 79
    of_chunk = [batch for one in groups if one.chunk.start_row == 8 for batch in one.batches]
    computed = [one.row.row_index for batch in of_chunk for one in batch]
    assert sorted(computed) == [8, 9, 10, 11, 12, 14, 15]


def test_a_changed_input_fails_the_job(leased: LeasedJob) -> None:
    """Rows of another file must never be recorded as this one's."""
    harness = Harness(leased, source=BrokenSource(leased.source(), 20, lambda: "drop"))
    harness.take_all()
    error = harness.feed.close()
    assert isinstance(error, InvalidInput)
    assert "16 to 23" in error.message


def test_a_chunk_that_cannot_be_read_waits_while_the_others_go_on(leased: LeasedJob) -> None:
    """A hiccup of the disk or the object store costs a retry of one chunk, not the job."""

    def fail() -> None:
        raise OSError(5, "Input/output error")

    harness = Harness(leased, source=BrokenSource(leased.source(), 20, fail))
    groups = harness.take_all()
    assert harness.feed.close() is None
    assert sorted({one.chunk.start_row for one in groups}) == [start for start in range(0, 80, 8) if start != 16]
    chunk = leased.chunks()[2]
    assert (str(chunk.state), chunk.errors, chunk.lease_id) == ("pending", 1, None)
    assert 16 not in harness.window.outstanding()


def test_a_failing_tokenizer_ends_a_reader_that_waits_for_it(leased: LeasedJob) -> None:
    """A dead stage in the middle must not leave the stage before it waiting for ever."""
    reached = threading.Event()
    broken = threading.Event()

    def fail(rows: object) -> None:
        reached.set()
        broken.wait(300)
        raise ServiceUnavailable("the tokenizer's server is gone")

    harness = Harness(leased, chunk_seconds=1000.0, on_encode=fail)
    harness.window.computed(8, 0.001)  # a fast device: it claims many chunks, and the reader fills its channel
    harness.window.waiting()
    assert reached.wait(300)
    broken.set()
    assert harness.feed.next(lambda: False) is None
    error = harness.feed.close()
    assert isinstance(error, ServiceUnavailable)
    assert threads_of_the_pipeline() == []


def test_closing_frees_stages_that_wait_on_full_channels(leased: LeasedJob) -> None:
    """A device that dies leaves no thread that goes on reading and tokenizing."""
    harness = Harness(leased, chunk_seconds=1000.0)
    harness.window.waiting()
    assert harness.next() is not None
    harness.window.computed(8, 0.001)
    wait_until(lambda: len(harness.window.outstanding()) > 5, "more chunks are claimed than the channels hold")
    assert harness.feed.close() is None
    assert threads_of_the_pipeline() == []


def test_a_lost_lease_ends_the_feed(leased: LeasedJob) -> None:
    """A lost owner must not read on for work that belongs to another slot."""
    harness = Harness(leased)
    assert harness.next() is not None
    leases.release(leased.database, harness.lease.lease_id, "a test took it away")
    harness.take_all()
    assert isinstance(harness.feed.close(), LostLease)


# -- how much is claimed ---------------------------------------------------------------------------------------------


def test_one_chunk_is_held_ahead_of_a_slow_device(leased: LeasedJob) -> None:
    """Two slots share a job evenly only if neither holds more than it will soon compute."""
    harness = Harness(leased, chunk_seconds=2.0)
    first = harness.next()
    assert first is not None
    harness.window.computed(8, 10.0)  # five times chunk_seconds
    wait_until(lambda: leased.states().count("leased") == 2, "the next chunk is claimed ahead")
    while not first.is_last:
        first = harness.next()
        assert first is not None
    assert leased.states().count("leased") == 2
    second = harness.next()
    assert second is not None
    assert second.chunk.start_row == 8
    wait_until(lambda: leased.states().count("leased") == 3, "and the one after it once that is begun")
    harness.feed.close()


def test_a_fast_device_claims_several_chunks_at_once() -> None:
    """Small chunks on a GPU must not cost one transaction each."""
    window = ClaimWindow(2.0)
    window.claimed([Claim(0, 100, {}, 1, 0)])
    window.begun(0)
    window.computed(100, 0.1)  # 20 chunks in two seconds
    request = window.wait_for_request(only_when_idle=False)
    assert request is not None
    assert (request.num_chunks, request.idle) == (20, False)
    window.claimed([Claim(100 * number, 100 * number + 100, {}, 1, 0) for number in range(1, 21)])
    for number in range(1, 11):
        window.begun(100 * number)
    request = window.wait_for_request(only_when_idle=False)
    assert request is not None
    assert request.num_chunks == 10


def test_pieces_of_a_cut_chunk_do_not_make_it_greedy() -> None:
    """After a search for a poison row, a runner must not claim whole chunks by the dozen."""
    window = ClaimWindow(2.0)
    window.claimed([Claim(0, 100, {}, 1, 0), Claim(100, 101, {}, 1, 1)])
    window.begun(0)
    window.begun(100)
    window.computed(100, 1.0)
    request = window.wait_for_request(only_when_idle=False)
    assert request is not None
    assert request.num_chunks == 2


def test_at_the_end_of_a_job_the_last_chunks_are_left_to_a_free_slot(leased: LeasedJob) -> None:
    """No slot idles while another one holds chunks that it has not begun."""
    first, second = leased.lease("slot-0"), leased.lease("slot-1")
    assert fair_share(leased.database, leased.job_id, most=100) == 5
    assert fair_share(leased.database, leased.job_id, most=3) == 3
    chunks.claim(leased.database, first.lease_id, limit=9)
    assert fair_share(leased.database, leased.job_id, most=100) == 0
    leases.release(leased.database, second.lease_id, "drained")
    assert fair_share(leased.database, leased.job_id, most=100) == 1


def test_a_closed_lease_claims_nothing() -> None:
    """After a stop no further chunk is taken."""
    window = ClaimWindow(2.0)
    window.close()
    assert window.wait_for_request(only_when_idle=True) is None
