"""Every sink on SQLite and PostgreSQL: each recorded result is read once, in row order, whatever its content."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import update
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.rows import Result, RowError
from jobs.data.sinks import Sink, open_sink
from jobs.data.sinks.database_sink import DatabaseSink
from jobs.data.sinks.lines import parse_line
from jobs.data.sources import ChunkRange
from jobs.data.store import Store
from jobs.data.store_keys import artifact_key
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.states import ChunkState
from jobs.db.tables import Chunk
from jobs.errors import InvalidOutput, LostLease, NotFound, RunnerDied, ServiceUnavailable, StokerError
from jobs.ledger import chunks, planning, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.specs.inference import OutputSpec, parse_spec

SPEC = parse_spec({"task": "fill-mask", "model": "m", "input": {"path": "rows.jsonl"}})
SINKS = ["database", "jsonl", "parquet"]


class SinkJobs:
    """One sink with a database, a store and jobs whose chunks are recorded by the real lease verbs."""

    def __init__(self, to: str, database: Database, store: Store, settings: Settings) -> None:
        self.to, self.database, self.store, self.settings = to, database, store, settings

    def sink(self, *, vector_output: bool = False) -> Sink:
        output = OutputSpec.model_validate({"to": self.to})
        return open_sink(output, vector_output=vector_output, database=self.database, store=self.store)

    def job(self, *sizes: int) -> tuple[str, str]:
        """A running job with chunks of these sizes, and a lease that has claimed them all."""
        stops = np.cumsum(sizes).tolist()
        job = job_ledger.submit(self.database, SPEC)
        chunks = [ChunkRange(stop - size, stop, {}) for stop, size in zip(stops, sizes, strict=True)]
        planning.plan(self.database, job.id, chunks)
        return job.id, self.lease(job.id, len(sizes))

    def lease(self, job_id: str, limit: int) -> str:
        """An active lease on a new slot that has claimed `limit` chunks of the job."""
        slot_id = new_id("slot")
        slots.register(self.database, [slots.SlotInfo(slot_id, "host", "cpu", None, "CPU", 0, 1)])
        slots.enter(self.database, slot_id, "worker-1", self.settings)
        (lease_id,) = grants.grant(self.database, Grant(job_id, (slot_id,)), lease_seconds=60)
        assert leases.activate(self.database, lease_id, "worker-1", lease_seconds=60) is not None
        assert len(chunks.claim(self.database, lease_id, limit=limit)) == limit
        return lease_id

    def record(self, sink: Sink, job_id: str, lease_id: str, results: Sequence[Result]) -> str | None:
        """Record one chunk as a runner does."""
        start_row = results[0].row_index
        part = sink.stage(job_id, lease_id, start_row, results)
        chunk = ChunkResults(start_row, start_row + len(results), results, part)
        chunks.commit(self.database, lease_id, [chunk], lambda session: sink.record(session, job_id, results))
        return part

    def round_trip(self, results: Sequence[Result], *, vector_output: bool = False) -> list[Result]:
        """What comes back of the results of a whole job, read directly and, for file sinks, from the merged file."""
        sink = self.sink(vector_output=vector_output)
        job_id, lease_id = self.job(len(results))
        self.record(sink, job_id, lease_id, results)
        found = list(sink.read(job_id))
        if self.to != "database":
            assert_same(self.merged(sink, job_id, vector_output=vector_output), found)
        return found

    def merged(self, sink: Sink, job_id: str, *, vector_output: bool = False) -> list[Result]:
        """The results in the job's merged file, read by nothing of the sink's own."""
        (made,) = sink.merge(job_id)
        assert made.name == f"results.{self.to}"
        assert made.stored.key == artifact_key(job_id, made.name)
        assert made.stored.num_bytes == self.store.size(made.stored.key)
        with self.store.open(made.stored.key) as file:
            if self.to == "jsonl":
                return [parse_line(line, vector_output=vector_output) for line in file.readlines()]
            return [row_of(record, vector_output) for record in pq.read_table(file).to_pylist()]


def row_of(record: dict[str, Any], vector_output: bool) -> Result:
    error = None if record["error"] is None else RowError(**orjson.loads(record["error"]))
    output = record["output"]
    if output is not None:
        output = np.array(output, np.float32) if vector_output else orjson.loads(output)
    return Result(record["row_index"], record["key"], output, error)


def assert_same(found: Sequence[Result], expected: Sequence[Result]) -> None:
    """Equal in all but the token counts, which are not kept by row; vectors equal in each bit's meaning."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.row_index, one.key, one.error) == (other.row_index, other.key, other.error)
        if isinstance(other.output, np.ndarray):
            assert one.output.dtype == np.float32
            np.testing.assert_array_equal(one.output, other.output)
        else:
            assert one.output == other.output


def outputs(start: int, stop: int) -> list[Result]:
    return [Result(row, f"k{row}", [{"label": "a", "score": row / 7}], num_tokens=3) for row in range(start, stop)]


def vectors(start: int, stop: int, width: int = 8) -> list[Result]:
    random = np.random.default_rng(start)
    return [Result(row, None, random.standard_normal(width, dtype=np.float32)) for row in range(start, stop)]


def failures(start: int, stop: int) -> list[Result]:
    return [Result(row, f"k{row}", error=RowError("null_value", "no text", line=row + 1)) for row in range(start, stop)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture(params=SINKS)
def sink_jobs(request: pytest.FixtureRequest, database: Database, store: Store, settings: Settings) -> SinkJobs:
    """Each sink on each database."""
    return SinkJobs(request.param, database, store, settings)


@pytest.fixture(params=["jsonl", "parquet"])
def file_sink_jobs(request: pytest.FixtureRequest, database: Database, store: Store, settings: Settings) -> SinkJobs:
    """Each file sink on each database."""
    return SinkJobs(request.param, database, store, settings)


@pytest.fixture
def database_sink_jobs(database: Database, store: Store, settings: Settings) -> SinkJobs:
    """The database sink on each database."""
    return SinkJobs("database", database, store, settings)


def test_results_are_in_row_order_however_their_chunks_were_recorded(sink_jobs: SinkJobs) -> None:
    sink = sink_jobs.sink()
    job_id, lease_id = sink_jobs.job(300, 7, 1, 92)
    rows = outputs(0, 300) + failures(300, 307) + outputs(307, 400)
    for start, stop in [(308, 400), (0, 300), (307, 308), (300, 307)]:
        sink_jobs.record(sink, job_id, lease_id, rows[start:stop])
    assert_same(list(sink.read(job_id)), rows)
    if sink_jobs.to != "database":
        assert_same(sink_jobs.merged(sink, job_id), rows)


def test_vectors_keep_every_bit(sink_jobs: SinkJobs) -> None:
    rows = vectors(0, 40, width=384)
    rows[7] = Result(7, "seven", error=RowError("poison_row", "it kills"))
    assert_same(sink_jobs.round_trip(rows, vector_output=True), rows)


def test_very_wide_and_strided_vectors_are_fine(sink_jobs: SinkJobs) -> None:
    wide = np.arange(8192, dtype=np.float32)[::2]
    rows = [Result(0, "r0", wide), Result(1, "r1", wide.astype(np.float64)), Result(2, "r2", np.zeros(1, np.float32))]
    found = sink_jobs.round_trip(rows, vector_output=True)
    np.testing.assert_array_equal(found[0].output, wide)
    np.testing.assert_array_equal(found[1].output, wide)
    assert found[0].output.shape == (4096,)


def test_a_vector_that_was_read_can_be_changed(sink_jobs: SinkJobs) -> None:
    """A read-only array makes torch warn about undefined behaviour."""
    (found,) = sink_jobs.round_trip(vectors(0, 1), vector_output=True)
    found.output[0] = 1.0


@pytest.mark.parametrize("to", SINKS)
def test_not_a_number_stays_in_binary_vectors_and_is_null_in_json(
    to: str, sqlite_database: Database, store: Store, settings: Settings
) -> None:
    sink_jobs = SinkJobs(to, sqlite_database, store, settings)
    vector = np.array([math.nan, math.inf, -math.inf, 1.0], dtype=np.float32)
    expected = np.array([math.nan] * 3 + [1.0], dtype=np.float32) if to == "jsonl" else vector
    (found,) = sink_jobs.round_trip([Result(0, "r0", vector)], vector_output=True)
    np.testing.assert_array_equal(found.output, expected)
    scores = [Result(0, None, {"score": math.nan}), Result(1, None, math.nan), Result(2, None, np.float32("-inf"))]
    assert [row.output for row in sink_jobs.round_trip(scores)] == [{"score": None}, "NaN", "-Infinity"]


@pytest.mark.parametrize("vector_output", [False, True])
def test_a_job_of_errors_only_has_the_same_columns(sink_jobs: SinkJobs, vector_output: bool) -> None:
    rows = failures(0, 20)
    assert_same(sink_jobs.round_trip(rows, vector_output=vector_output), rows)


def test_numpy_values_in_an_output_become_plain_json(sink_jobs: SinkJobs) -> None:
    output = {
        "score": np.float32(0.5), "index": np.int64(7), "flag": np.bool_(True), "box": np.arange(6)[::2],
        "scalar": np.array(3), 5: (1, 2), "big": 10**30,
    }  # fmt: skip
    (found,) = sink_jobs.round_trip([Result(0, None, output)])
    assert found.output == {
        "score": 0.5, "index": 7, "flag": True, "box": [0, 2, 4], "scalar": 3, "5": [1, 2], "big": "1" + "0" * 30,
    }  # fmt: skip


def test_a_falsy_output_is_an_output(sink_jobs: SinkJobs) -> None:
    rows = [Result(row, "", output) for row, output in enumerate([0, "", [], {}, False, "null", 1.5])]
    found = sink_jobs.round_trip(rows)
    assert_same(found, rows)
    assert [type(row.output) for row in found] == [type(row.output) for row in rows]


def test_text_that_a_database_or_utf8_cannot_hold_has_one_result(sink_jobs: SinkJobs) -> None:
    """PostgreSQL refuses NUL and both refuse half a surrogate pair: one such row must not fail its whole chunk."""
    odd = "a\0b\ud800c\udfffd\U0001f600\u2028\r\n\"'\\"
    clean = "b\ufffdc\ufffdd\U0001f600\u2028\r\n\"'\\"
    rows = [
        Result(0, odd, {odd: [odd, 1]}),
        Result(1, odd, error=RowError("invalid_json_line", odd, 3)),
        Result(2, "\ud800", "\ud800"),
        Result(3, "\ud83d\ude00", "\ud83d\ude00"),
    ]
    expected = [
        Result(0, f"a\ufffd{clean}", {f"a\0{clean}": [f"a\0{clean}", 1]}),
        Result(1, f"a\ufffd{clean}", error=RowError("invalid_json_line", f"a\0{clean}", 3)),
        Result(2, "\ufffd", "\ufffd"),
        Result(3, "\U0001f600", "\U0001f600"),
    ]
    assert_same(sink_jobs.round_trip(rows), expected)


def test_an_output_that_is_no_json_ends_the_job_with_its_row_named(sink_jobs: SinkJobs) -> None:
    sink = sink_jobs.sink()
    job_id, lease_id = sink_jobs.job(2)
    with pytest.raises(InvalidOutput, match=r"row 1: the output cannot be written as JSON: .*: object"):
        sink_jobs.record(sink, job_id, lease_id, [Result(0, None, "fine"), Result(1, None, {"mask": object()})])
    assert list(sink.read(job_id)) == []
    assert list(sink_jobs.store.list()) == []


def test_an_output_that_is_no_vector_is_refused(sink_jobs: SinkJobs) -> None:
    sink = sink_jobs.sink(vector_output=True)
    job_id, lease_id = sink_jobs.job(1)
    for output in ("text", [[1.0, 2.0]], np.float32(1), [1.0, "x"]):
        with pytest.raises(InvalidOutput, match="row 0: the output is not a vector"):
            sink_jobs.record(sink, job_id, lease_id, [Result(0, None, output)])
    assert list(sink.read(job_id)) == []


def test_reading_goes_on_after_any_row_and_stops_at_the_limit(sink_jobs: SinkJobs) -> None:
    """This is how the API pages."""
    sink = sink_jobs.sink()
    job_id, lease_id = sink_jobs.job(40, 40, 40)
    for start in (0, 40, 80):
        sink_jobs.record(sink, job_id, lease_id, outputs(start, start + 40))
    for after_row in (-1, 0, 38, 39, 40, 79, 100, 118, 119, 500):
        rows = [result.row_index for result in sink.read(job_id, after_row=after_row)]
        assert rows == list(range(after_row + 1, 120))
        rows = [result.row_index for result in sink.read(job_id, after_row=after_row, limit=45)]
        assert rows == list(range(after_row + 1, min(after_row + 46, 120)))
    assert list(sink.read(job_id, limit=0)) == []


def test_more_rows_than_a_page_come_back_whole(sink_jobs: SinkJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.data.sinks.database_sink._PAGE_ROWS", 7)
    monkeypatch.setattr("jobs.data.sinks.files._PAGE_CHUNKS", 2)
    sink = sink_jobs.sink()
    job_id, lease_id = sink_jobs.job(*[10] * 5)
    for start in range(0, 50, 10):
        sink_jobs.record(sink, job_id, lease_id, outputs(start, start + 10))
    assert_same(list(sink.read(job_id)), outputs(0, 50))
    assert_same(list(sink.read(job_id, after_row=13, limit=21)), outputs(14, 35))
    if sink_jobs.to != "database":
        assert_same(sink_jobs.merged(sink, job_id), outputs(0, 50))


def test_only_recorded_chunks_of_the_job_itself_are_read(sink_jobs: SinkJobs) -> None:
    sink = sink_jobs.sink()
    job_id, lease_id = sink_jobs.job(5, 5, 5)
    sink_jobs.record(sink, job_id, lease_id, outputs(10, 15))
    sink.stage(job_id, lease_id, 0, outputs(0, 5))
    leases.release(sink_jobs.database, lease_id, "drained")
    other_id, other_lease = sink_jobs.job(5)
    sink_jobs.record(sink, other_id, other_lease, failures(0, 5))
    assert_same(list(sink.read(job_id)), outputs(10, 15))
    assert_same(list(sink.read(job_id, after_row=3, limit=2)), outputs(10, 12))
    assert_same(list(sink.read(other_id)), failures(0, 5))
    assert list(sink.read("job_that_never_was")) == []


def test_a_lost_owner_changes_no_results_of_the_live_one(sink_jobs: SinkJobs) -> None:
    """A zombie stages its part late; were names shared, it would overwrite results that are committed."""
    sink = sink_jobs.sink()
    job_id, zombie = sink_jobs.job(5)
    stale = [Result(row, None, "stale") for row in range(5)]
    part = sink.stage(job_id, zombie, 0, stale)
    leases.crash(
        sink_jobs.database, zombie, RunnerDied(), computing=None,
        retries=sink_jobs.settings.model_copy(update={"retry_seconds": 1e-6}),
    )  # fmt: skip
    live = sink_jobs.lease(job_id, 1)
    sink_jobs.record(sink, job_id, live, outputs(0, 5))
    sink.stage(job_id, zombie, 0, stale)
    chunk = ChunkResults(0, 5, stale, part)
    with pytest.raises(LostLease):
        chunks.commit(sink_jobs.database, zombie, [chunk], lambda session: sink.record(session, job_id, stale))
    assert_same(list(sink.read(job_id)), outputs(0, 5))
    if sink_jobs.to != "database":
        assert_same(sink_jobs.merged(sink, job_id), outputs(0, 5))


def test_reading_holds_no_transaction_between_rows(sink_jobs: SinkJobs) -> None:
    """A slow download must not keep SQLite from checkpointing or PostgreSQL from vacuuming."""
    sink = sink_jobs.sink()
    job_id, lease_id = sink_jobs.job(50)
    sink_jobs.record(sink, job_id, lease_id, outputs(0, 50))
    reading = sink.read(job_id)
    next(reading)
    assert sink_jobs.database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert len(list(reading)) == 49


def test_outputs_of_a_megabyte_are_read_and_merged_in_bounded_memory(sink_jobs: SinkJobs) -> None:
    sink = sink_jobs.sink()
    job_id, lease_id = sink_jobs.job(*[4] * 25)
    text = "é" * 524_288
    for start in range(0, 100, 4):
        rows = [Result(row, None, f"{row} {text}") for row in range(start, start + 4)]
        sink_jobs.record(sink, job_id, lease_id, rows)
    tracemalloc.start()
    for row, result in enumerate(sink.read(job_id)):
        assert result.output == f"{row} {text}"
    sink.merge(job_id)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert row == 99
    assert peak_bytes < 40 * 2**20


def test_an_empty_job_has_no_results_and_an_empty_file(sink_jobs: SinkJobs) -> None:
    sink = sink_jobs.sink(vector_output=True)
    job = job_ledger.submit(sink_jobs.database, SPEC)
    assert list(sink.read(job.id)) == []
    if sink_jobs.to != "database":
        assert sink_jobs.merged(sink, job.id) == []


def test_recording_no_rows_writes_none(database_sink_jobs: SinkJobs) -> None:
    sink = database_sink_jobs.sink()
    with database_sink_jobs.database.write() as session:
        sink.record(session, "job", [])
    assert list(sink.read("job")) == []


def test_the_database_sink_stages_and_merges_nothing(database_sink_jobs: SinkJobs) -> None:
    sink = database_sink_jobs.sink()
    job_id, lease_id = database_sink_jobs.job(3)
    assert database_sink_jobs.record(sink, job_id, lease_id, outputs(0, 3)) is None
    assert sink.merge(job_id) == []
    assert list(database_sink_jobs.store.list()) == []


def test_a_page_of_large_rows_ends_at_its_bytes(database_sink_jobs: SinkJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.data.sinks.database_sink._PAGE_BYTES", 100)
    sink = database_sink_jobs.sink()
    job_id, lease_id = database_sink_jobs.job(30)
    rows = [Result(row, None, "x" * 60) for row in range(30)]
    database_sink_jobs.record(sink, job_id, lease_id, rows)
    assert_same(list(sink.read(job_id)), rows)
    assert_same(list(sink.read(job_id, limit=7)), rows[:7])
    assert_same(list(islice(sink.read(job_id, after_row=4), 3)), rows[5:8])


@pytest.mark.parametrize("vector_output", [False, True])
def test_chunks_without_a_part_are_taken_from_the_table(file_sink_jobs: SinkJobs, vector_output: bool) -> None:
    sink = file_sink_jobs.sink(vector_output=vector_output)
    make = vectors if vector_output else outputs
    job_id, lease_id = file_sink_jobs.job(5, 5, 5)
    rows = [*make(0, 5), *failures(5, 10), *make(10, 15)]
    file_sink_jobs.record(sink, job_id, lease_id, rows[10:15])
    file_sink_jobs.record(sink, job_id, lease_id, rows[0:5])
    table = DatabaseSink(file_sink_jobs.database, vector_output=vector_output)
    file_sink_jobs.record(table, job_id, lease_id, rows[5:10])
    with file_sink_jobs.database.write() as session:
        given_up = update(Chunk).where(col(Chunk.job_id) == job_id, col(Chunk.part).is_(None))
        session.connection().execute(given_up.values(state=ChunkState.FAILED))
    assert_same(list(sink.read(job_id)), rows)
    assert_same(list(sink.read(job_id, after_row=6, limit=5)), rows[7:12])
    assert_same(file_sink_jobs.merged(sink, job_id, vector_output=vector_output), rows)


def test_a_merge_with_rows_missing_is_refused_and_leaves_no_file(file_sink_jobs: SinkJobs) -> None:
    """Better no file than one that silently lacks rows."""
    sink = file_sink_jobs.sink()
    job_id, lease_id = file_sink_jobs.job(5, 5, 5)
    for start in (0, 10):
        file_sink_jobs.record(sink, job_id, lease_id, outputs(start, start + 5))
    with pytest.raises(StokerError, match="rows 5 to 14 do not all have exactly one result"):
        sink.merge(job_id)
    with file_sink_jobs.database.write() as session:
        session.connection().execute(update(Chunk).where(col(Chunk.start_row) == 10).values(state=ChunkState.PENDING))
    with pytest.raises(StokerError, match="rows from 5 on have no result"):
        sink.merge(job_id)
    assert not list(file_sink_jobs.store.list(artifact_key(job_id, "")))


def test_a_merge_with_a_part_gone_is_refused(file_sink_jobs: SinkJobs) -> None:
    sink = file_sink_jobs.sink()
    job_id, lease_id = file_sink_jobs.job(5)
    part = file_sink_jobs.record(sink, job_id, lease_id, outputs(0, 5))
    assert part is not None
    file_sink_jobs.store.delete(part)
    with pytest.raises(NotFound, match="parts/000000000000-lease_"):
        sink.merge(job_id)
    with pytest.raises(NotFound):
        list(sink.read(job_id))
    with pytest.raises(NotFound, match="no job"):
        sink.merge("job_that_never_was")


def test_a_merge_may_be_repeated(file_sink_jobs: SinkJobs) -> None:
    """A finalizer may die between the merge and the end of the job."""
    sink = file_sink_jobs.sink()
    job_id, lease_id = file_sink_jobs.job(5)
    file_sink_jobs.record(sink, job_id, lease_id, outputs(0, 5))
    assert sink.merge(job_id)[0].stored == sink.merge(job_id)[0].stored


def test_a_store_that_fails_while_staging_records_nothing(file_sink_jobs: SinkJobs, tmp_path: Path) -> None:
    job_id, lease_id = file_sink_jobs.job(5)
    (tmp_path / "file").write_bytes(b"")
    file_sink_jobs.store = Store(str(tmp_path / "file"))
    sink = file_sink_jobs.sink()
    with pytest.raises(ServiceUnavailable):
        file_sink_jobs.record(sink, job_id, lease_id, outputs(0, 5))
    assert list(sink.read(job_id)) == []


@pytest.mark.parametrize("to", ["jsonl", "parquet"])
def test_file_sinks_work_on_an_object_store(to: str, sqlite_database: Database, settings: Settings) -> None:
    sink_jobs = SinkJobs(to, sqlite_database, Store(f"memory://{to}-bucket"), settings)
    rows = vectors(0, 10)
    assert_same(sink_jobs.round_trip(rows, vector_output=True), rows)


def test_a_line_is_exactly_as_documented(sqlite_database: Database, store: Store, settings: Settings) -> None:
    sink_jobs = SinkJobs("jsonl", sqlite_database, store, settings)
    sink = sink_jobs.sink(vector_output=True)
    job_id, lease_id = sink_jobs.job(2)
    rows = [
        Result(0, "r0", np.array([0.5, -1.0, 0.1], np.float32)),
        Result(1, None, error=RowError("null_value", "no text", line=2)),
    ]
    sink_jobs.record(sink, job_id, lease_id, rows)
    with store.open(sink.merge(job_id)[0].stored.key) as file:
        assert file.read() == (
            b'{"row_index":0,"key":"r0","output":[0.5,-1.0,0.1],"error":null}\n'
            b'{"row_index":1,"key":null,"output":null,"error":{"code":"null_value","message":"no text","line":2}}\n'
        )


@pytest.mark.parametrize("vector_output", [False, True])
def test_parquet_has_exactly_the_documented_columns_and_good_row_groups(
    vector_output: bool, sqlite_database: Database, store: Store, settings: Settings
) -> None:
    """Hundreds of tiny row groups, one for each chunk, would make every later scan slow."""
    sink_jobs = SinkJobs("parquet", sqlite_database, store, settings)
    sink = sink_jobs.sink(vector_output=vector_output)
    job_id, lease_id = sink_jobs.job(*[100] * 12)
    make = vectors if vector_output else outputs
    for start in range(0, 1200, 100):
        sink_jobs.record(sink, job_id, lease_id, (failures if start == 300 else make)(start, start + 100))
    with store.open(sink.merge(job_id)[0].stored.key) as handle:
        file = pq.ParquetFile(handle)
        output_type = pa.list_(pa.float32()) if vector_output else pa.string()
        assert [(field.name, field.type) for field in file.schema_arrow] == [
            ("row_index", pa.int64()), ("key", pa.string()), ("output", output_type), ("error", pa.string()),
        ]  # fmt: skip
        assert file.metadata.num_rows == 1200
        assert file.metadata.num_row_groups == 1


def test_row_groups_end_before_they_fill_the_memory(
    sqlite_database: Database, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.data.sinks.parquet_sink._GROUP_ROWS", 120)
    monkeypatch.setattr("jobs.data.sinks.parquet_sink._BATCH_ROWS", 50)
    sink_jobs = SinkJobs("parquet", sqlite_database, store, settings)
    rows = vectors(0, 330)
    assert_same(sink_jobs.round_trip(rows, vector_output=True), rows)
    monkeypatch.setattr("jobs.data.sinks.parquet_sink._GROUP_BYTES", 64)
    monkeypatch.setattr("jobs.data.sinks.parquet_sink._BATCH_BYTES", 64)
    assert_same(sink_jobs.round_trip(rows, vector_output=True), rows)
