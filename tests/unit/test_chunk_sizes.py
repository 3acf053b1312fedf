"""How rows become chunks: of a good size for the slots, the task, and the bytes of their media."""

from __future__ import annotations

import base64
import os
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.sources import ChunkRange
from jobs.data.sources.media import stored_bytes
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.tables import Chunk
from jobs.ledger import jobs as job_ledger
from jobs.specs.inference import parse_spec
from scheduler.control.planning import chunk_sizes
from scheduler.control.planning.chunk_sizes import chunk_rows_for, largest_chunk_rows, merge_ranges
from scheduler.control.planning.planner import plan_job
from tests.support.rows import write_rows

CPU, GPU = (largest_chunk_rows("embeddings", has_gpu=has_gpu) for has_gpu in (False, True))
MIB = 2**20


def tiled(ranges: list[ChunkRange], num_rows: int) -> bool:
    edges = [(item.start_row, item.stop_row) for item in ranges]
    follows = all(before[1] == after[0] for before, after in pairwise(edges))
    return edges[0][0] == 0 and edges[-1][1] == num_rows and follows


def test_chunks_keep_every_slot_busy_to_the_end_within_the_limits() -> None:
    assert chunk_rows_for(1, num_slots=2, largest=CPU) == 32
    assert chunk_rows_for(800, num_slots=2, largest=CPU) == 96
    assert chunk_rows_for(1_000_000, num_slots=2, largest=CPU) == 128
    assert chunk_rows_for(1_000_000, num_slots=8, largest=GPU) == 2048
    assert chunk_rows_for(1_000, num_slots=0, largest=GPU) == 256
    assert chunk_rows_for(10**9, num_slots=64, largest=GPU) == 10_000
    images = largest_chunk_rows("image-classification", has_gpu=True)
    assert images == largest_chunk_rows("embeddings", has_gpu=True, has_images=True) < GPU
    generated = largest_chunk_rows("text-generation", has_gpu=False)
    assert chunk_rows_for(1_000_000, num_slots=2, largest=generated) == 64


def index(num_rows: int, *, name: str = "f", first_row: int = 0, grain: int = 32) -> Iterator[ChunkRange]:
    for start in range(0, num_rows, grain):
        stop = min(start + grain, num_rows)
        locator = {"file": name, "size": num_rows, "stamp": "s", "row": first_row + start, "offset": start * 10}
        yield ChunkRange(first_row + start, first_row + stop, locator)


def test_ranges_of_one_file_are_merged_and_keep_the_place_of_the_first() -> None:
    merged = merge_ranges(index(1000), num_slots=2, largest=CPU)
    assert tiled(merged, 1000)
    assert {item.stop_row - item.start_row for item in merged} == {128, 104}
    assert all(
        item.locator["row"] == item.start_row and item.locator["offset"] == item.start_row * 10 for item in merged
    )


def test_a_chunk_of_megabyte_rows_stays_small_enough_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_sizes, "LARGEST_CHUNK_BYTES", 640)
    merged = merge_ranges(index(1000), num_slots=2, largest=CPU)
    assert tiled(merged, 1000)
    assert {item.stop_row - item.start_row for item in merged[:-1]} == {96}, "two grains of 320 bytes, and the third"


@pytest.mark.parametrize("second", ["g", "f"])
def test_a_chunk_never_spans_two_files_nor_one_that_is_named_twice(second: str) -> None:
    both = [*index(64, name="f"), *index(64, name=second, first_row=64)]
    merged = merge_ranges(both, num_slots=1, largest=GPU)
    assert [(item.start_row, item.stop_row) for item in merged] == [(0, 32), (32, 64), (64, 96), (96, 128)]
    merged = merge_ranges([*index(640, name="f"), *index(640, name=second, first_row=640)], num_slots=1, largest=GPU)
    assert 640 in {item.start_row for item in merged}


def test_a_row_group_that_several_ranges_share_is_merged() -> None:
    shared = [ChunkRange(at, at + 32, {"file": "f", "row": 0, "group": 0}) for at in range(0, 3200, 32)]
    assert len(merge_ranges(shared, num_slots=1, largest=CPU)) == 25
    twice = [ChunkRange(at + 3200, at + 3232, {"file": "f", "row": 3200, "group": 0}) for at in range(0, 3200, 32)]
    assert 3200 in {item.start_row for item in merge_ranges([*shared, *twice], num_slots=1, largest=CPU)}


def test_an_endless_input_is_planned_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_sizes, "MOST_CHUNKS", 100)
    tracemalloc.start()
    merged = merge_ranges(index(32 * 5000), num_slots=1, largest=CPU)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tiled(merged, 32 * 5000)
    assert len(merged) <= 101
    assert peak_bytes < 500_000, "ranges that were merged are still held"


# -- media


def planned_rows(database: Database, settings: Settings, path: Path) -> list[int]:
    """Plan a job of images. Returns the number of rows of each chunk."""
    spec = parse_spec({"task": "image-classification", "model": "org/name", "input": {"path": str(path)}})
    job = job_ledger.submit(database, spec)
    plan_job(database, Store(str(path.parent / "store")), settings, job.id)
    with database.read() as session:
        of_job = select(Chunk).where(col(Chunk.job_id) == job.id).order_by(col(Chunk.start_row))
        return [chunk.stop_row - chunk.start_row for chunk in session.scalars(of_job)]


@pytest.mark.parametrize(
    ("sizes", "rows_per_chunk"),
    [
        ([5 * MIB], {12}),
        ([100 * MIB], {1}),
        ([1 * MIB, 3 * MIB], {32}),
        ([1000], {64}),
    ],
    ids=["photos", "films", "mixed", "thumbnails"],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_chunks_of_media_are_sized_by_the_bytes_of_their_files(
    form: str,
    sizes: list[int],
    rows_per_chunk: set[int],
    tmp_path: Path,
    settings: Settings,
    sqlite_database: Database,
) -> None:
    """A chunk of a thousand photos would be minutes of work to lose. The files are holes, so they take no space."""
    paths = [tmp_path / f"{size}.jpg" for size in sizes]
    for path, size in zip(paths, sizes, strict=True):
        path.touch()
        os.truncate(path, size)
    images = [{"image": str(paths[number % len(paths)])} for number in range(600)]
    rows = tmp_path / f"rows.{form}"
    if form == "jsonl":
        write_rows(rows, images)
    else:
        pq.write_table(pa.Table.from_pylist(images), rows)
    planned = planned_rows(sqlite_database, settings, rows)
    assert sum(planned) == 600
    assert set(planned[:-1]) == rows_per_chunk


def test_chunks_of_inline_media_are_sized_by_their_bytes(
    tmp_path: Path, settings: Settings, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_sizes, "LARGEST_MEDIA_BYTES_CPU", 100_000)
    data = base64.b64encode(bytes(7500)).decode()
    for image, planned in (
        ({"bytes": data}, [13, 13, 13, 1]),
        (data, [10, 10, 10, 10]),
        (f"data:image/png;base64,{data}", [9, 9, 9, 9, 4]),
    ):
        rows = write_rows(tmp_path / "rows.jsonl", [{"image": image}] * 40)
        assert planned_rows(sqlite_database, settings, rows) == planned


def test_files_that_jobs_may_not_read_are_not_measured(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "image.jpg").write_bytes(bytes(100))
    inside = settings.model_copy(update={"input_roots": [tmp_path]})
    outside = settings.model_copy(update={"input_roots": [tmp_path / "other"]})
    for value, rules, size in (
        (str(tmp_path / "image.jpg"), inside, 100),
        (f"file://{tmp_path / 'image.jpg'}", inside, 100),
        (str(tmp_path / "image.jpg"), outside, 0),
        (str(tmp_path / "missing.jpg"), inside, 0),
        ("https://example.com/image.jpg", inside, 0),
        ("a\0b", inside, 3),
        (b"12345", inside, 5),
        ({"array": [0.0]}, inside, 0),
    ):
        assert stored_bytes(value, rules) == size, value
