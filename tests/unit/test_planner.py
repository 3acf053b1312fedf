"""Planning: what is refused at once, how rows become chunks, and what a planning that is cut off leaves behind."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.sources import ChunkRange
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Chunk, Job
from jobs.errors import Conflict, Forbidden, InvalidInput, InvalidModel, InvalidOutput, InvalidSpec, NotFound, UserError
from jobs.ledger import jobs as job_ledger
from jobs.ledger import planning, slots
from jobs.specs.inference import InferenceSpec, parse_spec
from scheduler.control import planner
from scheduler.control.planner import (
    MOST_FILES_LOOKED_AT,
    check_submission,
    chunk_rows_for,
    largest_chunk_rows,
    merge_ranges,
    open_input,
    plan_job,
)
from tests.support.rows import write_rows

CPU, GPU = (largest_chunk_rows("embeddings", has_gpu=has_gpu) for has_gpu in (False, True))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def spec_of(path: object, **fields: Any) -> InferenceSpec:
    return parse_spec({"task": "embeddings", "model": "org/name", "input": {"path": path}, **fields})


def chunks_of(db: Database, job_id: str) -> list[Chunk]:
    with db.read() as session:
        return list(session.scalars(select(Chunk).where(col(Chunk.job_id) == job_id).order_by(col(Chunk.start_row))))


def state_of(db: Database, job_id: str) -> Job:
    with db.read() as session:
        return job_ledger.get(session, job_id)


def tiled(ranges: list[ChunkRange], num_rows: int) -> bool:
    edges = [(item.start_row, item.stop_row) for item in ranges]
    follows = all(before[1] == after[0] for before, after in pairwise(edges))
    return edges[0][0] == 0 and edges[-1][1] == num_rows and follows


# -- what is refused at once


def bad_specs(tmp_path: Path) -> Iterator[tuple[InferenceSpec, type[UserError], str]]:
    rows = str(write_rows(tmp_path / "rows.jsonl", 3))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    yield spec_of(str(tmp_path / "missing.jsonl")), InvalidInput, "missing.jsonl"
    yield spec_of(str(tmp_path / "folder")), InvalidInput, "folder"
    yield spec_of(str(tmp_path / "empty.jsonl")), InvalidInput, "no rows"
    yield parse_spec({**spec_of(rows).model_dump(), "input": {"path": rows, "key": "number"}}), InvalidInput, "'number'"
    yield spec_of("file:nothing"), UserError, "nothing"
    yield spec_of(rows, model=str(tmp_path / "folder")), InvalidModel, "folder"
    yield spec_of(rows, output={"to": "jsonl", "path": str(tmp_path / "no" / "out.jsonl")}), InvalidOutput, "out.jsonl"
    yield spec_of(rows, output={"to": "jsonl", "path": str(tmp_path / "folder")}), InvalidOutput, "directory"
    for path in (rows, str(tmp_path / "*.jsonl"), f"file://{rows}"):
        yield spec_of(path, output={"to": "jsonl", "path": rows}), InvalidOutput, "is an input of this job"


def test_bad_submissions_are_refused_in_one_sentence(
    tmp_path: Path, settings: Settings, store: Store, sqlite_database: Database
) -> None:
    for spec, error_class, word in bad_specs(tmp_path):
        with pytest.raises(error_class) as caught:
            check_submission(spec, rules=settings, store=store, database=sqlite_database)
        assert word in caught.value.message
        assert "\n" not in caught.value.message


def test_labels_stand_in_the_spec_or_in_a_column(
    tmp_path: Path, settings: Settings, store: Store, sqlite_database: Database
) -> None:
    check = partial(check_submission, rules=settings, store=store, database=sqlite_database)
    document = spec_of(str(write_rows(tmp_path / "rows.jsonl", 3))).model_dump()
    document |= {"task": "zero-shot-classification"}
    with pytest.raises(InvalidSpec, match=r"^parameters\.candidate_labels: task .* needs labels") as refused:
        check(parse_spec(document))
    assert refused.value.param == "parameters.candidate_labels"
    with pytest.raises(InvalidSpec, match="needs labels"):
        parse_spec({**document, "input": {**document["input"], "columns": {"candidate_labels": None}}})
    check(parse_spec({**document, "parameters": {"candidate_labels": ["a"]}}))
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text('{"text": "a", "candidate_labels": ["x"]}\n')
    check(parse_spec({**document, "input": {"path": str(labelled)}}))


def test_the_planner_looks_at_the_columns_of_every_file(
    tmp_path: Path, settings: Settings, store: Store, sqlite_database: Database
) -> None:
    for number in range(MOST_FILES_LOOKED_AT + 1):
        (tmp_path / f"{number:02}.csv").write_text("text\na\n" if number < MOST_FILES_LOOKED_AT else "text,text\na,b\n")
    spec = spec_of(str(tmp_path / "*.csv"))
    check_submission(spec, rules=settings, store=store, database=sqlite_database)
    job_id = job_ledger.submit(sqlite_database, spec).id
    plan_job(sqlite_database, store, settings, job_id)
    with sqlite_database.read() as session:
        job = job_ledger.get(session, job_id)
    assert job.state == JobState.FAILED
    assert f"{MOST_FILES_LOOKED_AT}.csv' has several columns 'text'" in (job.error_message or "")


def test_an_output_outside_the_roots_is_forbidden(
    tmp_path: Path, settings: Settings, store: Store, sqlite_database: Database
) -> None:
    bounded = settings.model_copy(update={"output_roots": [tmp_path / "allowed"]})
    spec = spec_of(
        str(write_rows(tmp_path / "rows.jsonl", 1)), output={"to": "jsonl", "path": str(tmp_path / "o.jsonl")}
    )
    with pytest.raises(Forbidden):
        check_submission(spec, rules=bounded, store=store, database=sqlite_database)


def test_a_good_submission_passes(tmp_path: Path, settings: Settings, store: Store, sqlite_database: Database) -> None:
    spec = spec_of(str(write_rows(tmp_path / "rows.jsonl", 3)))
    check_submission(spec, rules=settings, store=store, database=sqlite_database)


# -- how rows become chunks


def test_chunks_keep_every_slot_busy_to_the_end_within_the_limits() -> None:
    assert chunk_rows_for(1, num_slots=2, largest=CPU) == 32
    assert chunk_rows_for(800, num_slots=2, largest=CPU) == 96
    assert chunk_rows_for(1_000_000, num_slots=2, largest=CPU) == 128
    assert chunk_rows_for(1_000_000, num_slots=8, largest=GPU) == 2048
    assert chunk_rows_for(1_000, num_slots=0, largest=GPU) == 256
    assert chunk_rows_for(10**9, num_slots=64, largest=GPU) == 10_000
    assert largest_chunk_rows("image-classification", has_gpu=True) < GPU
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
    monkeypatch.setattr(planner, "LARGEST_CHUNK_BYTES", 640)
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
    monkeypatch.setattr(planner, "MOST_CHUNKS", 100)
    tracemalloc.start()
    merged = merge_ranges(index(32 * 5000), num_slots=1, largest=CPU)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tiled(merged, 32 * 5000)
    assert len(merged) <= 101
    assert peak_bytes < 500_000, "ranges that were merged are still held"


# -- planning a job


def test_a_planned_job_is_queued_and_its_chunks_hold_every_row(
    tmp_path: Path, settings: Settings, store: Store, database: Database
) -> None:
    slots.register(database, [slots.SlotInfo(f"s{n}", "host", "cpu", None, "CPU", 0, 1) for n in range(2)])
    for number in range(2):
        slots.enter(database, f"s{number}", f"i{number}", settings)
    job = job_ledger.submit(database, spec_of(str(write_rows(tmp_path / "rows.jsonl", 500))))
    plan_job(database, store, settings, job.id)
    planned = state_of(database, job.id)
    assert (planned.state, planned.num_rows) == (JobState.QUEUED, 500)
    chunks = chunks_of(database, job.id)
    assert [chunk.stop_row - chunk.start_row for chunk in chunks] == [64] * 7 + [52]
    spec = parse_spec(planned.spec)
    source = open_input(spec, rules=settings, store=store, database=database)
    texts = [
        row.values["text"]
        for chunk in chunks
        for row in source.read(chunk.start_row, chunk.stop_row, dict(chunk.locator))
    ]
    assert texts == [f"row {number}" for number in range(500)]


def test_the_number_of_rows_a_user_asked_for_is_kept(
    tmp_path: Path, settings: Settings, store: Store, sqlite_database: Database
) -> None:
    spec = spec_of(str(write_rows(tmp_path / "rows.jsonl", 10)), batching={"chunk_rows": 3})
    job = job_ledger.submit(sqlite_database, spec)
    plan_job(sqlite_database, store, settings, job.id)
    assert [chunk.stop_row - chunk.start_row for chunk in chunks_of(sqlite_database, job.id)] == [3, 3, 3, 1]


def test_too_many_chunks_fail_the_job_with_a_reason(
    tmp_path: Path, settings: Settings, store: Store, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "MOST_CHUNKS_ASKED", 5)
    spec = spec_of(str(write_rows(tmp_path / "rows.jsonl", 10)), batching={"chunk_rows": 1})
    job = job_ledger.submit(sqlite_database, spec)
    plan_job(sqlite_database, store, settings, job.id)
    failed = state_of(sqlite_database, job.id)
    assert failed.state == JobState.FAILED
    assert "chunk_rows" in (failed.error_message or "")


def test_an_input_that_vanished_after_submission_fails_the_job(
    tmp_path: Path, settings: Settings, store: Store, database: Database
) -> None:
    job = job_ledger.submit(database, spec_of(str(tmp_path / "gone.jsonl")))
    plan_job(database, store, settings, job.id)
    failed = state_of(database, job.id)
    assert (failed.state, failed.error_code) == (JobState.FAILED, "invalid_input")


def test_a_planning_that_is_not_wanted_any_more_leaves_the_job_to_the_next(
    tmp_path: Path, settings: Settings, store: Store, database: Database
) -> None:
    spec = spec_of(str(write_rows(tmp_path / "rows.jsonl", 500)), batching={"chunk_rows": 1})
    job = job_ledger.submit(database, spec)
    answers = iter([True] * 700)
    plan_job(database, store, settings, job.id, is_wanted=lambda: next(answers, False))
    assert state_of(database, job.id).state == JobState.VALIDATING
    plan_job(database, store, settings, job.id)
    assert state_of(database, job.id).state == JobState.QUEUED
    assert len(chunks_of(database, job.id)) == 500


def interrupted_by(work: Callable[[], object]) -> Iterator[ChunkRange]:
    yield ChunkRange(0, 10, {})
    work()
    yield ChunkRange(10, 20, {})


def test_a_planner_that_was_frozen_cannot_spoil_its_successors_plan(database: Database) -> None:
    """Else a job would lack a chunk, and never complete."""
    job = job_ledger.submit(database, spec_of("rows.jsonl"))

    def succeed() -> None:
        planning.plan(database, job.id, [ChunkRange(0, 7, {}), ChunkRange(7, 20, {})])

    with pytest.raises(Conflict):
        planning.plan(database, job.id, interrupted_by(succeed))
    assert [chunk.stop_row for chunk in chunks_of(database, job.id)] == [7, 20]


def test_two_plannings_of_one_job_never_mix(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """One planner is frozen after its first chunk; another begins anew; the first then goes on, and must be refused."""
    monkeypatch.setattr(planning, "_PLAN_BATCH", 1)
    job = job_ledger.submit(database, spec_of("rows.jsonl"))
    frozen, thawed = threading.Event(), threading.Event()
    refused = []

    def freeze() -> Iterator[ChunkRange]:
        yield ChunkRange(0, 10, {})
        yield ChunkRange(10, 15, {})
        frozen.set()  # by now the first of these is written
        thawed.wait(300)
        yield ChunkRange(15, 20, {})

    def plan_frozen() -> None:
        try:
            planning.plan(database, job.id, freeze())
        except Conflict as error:
            refused.append(error)

    first = threading.Thread(target=plan_frozen)
    first.start()
    assert frozen.wait(300)

    def begin_anew() -> Iterator[ChunkRange]:
        yield ChunkRange(0, 5, {})
        yield ChunkRange(5, 8, {})
        thawed.set()  # by now the first of these is written, and what the frozen planner wrote is gone
        first.join()
        yield ChunkRange(8, 20, {})

    planning.plan(database, job.id, begin_anew())
    assert refused, "the plan lacked the rows that the second planner had deleted"
    assert [chunk.stop_row for chunk in chunks_of(database, job.id)] == [5, 8, 20]


def test_planning_of_an_unknown_job_says_so(settings: Settings, store: Store, sqlite_database: Database) -> None:
    with pytest.raises(NotFound):
        plan_job(sqlite_database, store, settings, "job_0")
