"""Planning: faults that are reported at once, and an interrupted planning."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
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
from scheduler.control.planning import planner
from scheduler.control.planning.planner import MOST_FILES_CHECKED, check_submission, open_input, plan_job
from tests.support.rows import write_rows


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


# -- faults reported at once


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
    for number in range(MOST_FILES_CHECKED + 1):
        (tmp_path / f"{number:02}.csv").write_text("text\na\n" if number < MOST_FILES_CHECKED else "text,text\na,b\n")
    spec = spec_of(str(tmp_path / "*.csv"))
    check_submission(spec, rules=settings, store=store, database=sqlite_database)
    job_id = job_ledger.submit(sqlite_database, spec).id
    plan_job(sqlite_database, store, settings, job_id)
    with sqlite_database.read() as session:
        job = job_ledger.get(session, job_id)
    assert job.state == JobState.FAILED
    assert f"{MOST_FILES_CHECKED}.csv' has more than one column 'text'" in (job.error_message or "")


def test_a_number_of_frames_is_compared_with_the_model(
    tmp_path: Path, settings: Settings, store: Store, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "check_model", lambda *_: None)  # it needs weights
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"video": "a.mp4"}\n')
    check = partial(check_submission, rules=settings, store=store, database=sqlite_database)
    document = {"task": "video-classification", "model": str(tmp_path), "input": {"path": str(rows)}}
    for model_type, num_frames, is_taken in (("vivit", 8, False), ("vivit", 16, True), ("timesformer", 8, True)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "num_frames": 16}))
        spec = parse_spec({**document, "parameters": {"num_frames": num_frames}})
        if is_taken:
            check(spec)
            continue
        with pytest.raises(InvalidSpec, match=r"^parameters\.num_frames: must be 16, ") as refused:
            check(spec)
        assert refused.value.param == "parameters.num_frames"


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


def test_the_requested_number_of_rows_per_chunk_is_kept(
    tmp_path: Path, settings: Settings, store: Store, sqlite_database: Database
) -> None:
    spec = spec_of(str(write_rows(tmp_path / "rows.jsonl", 10)), batching={"chunk_rows": 3})
    job = job_ledger.submit(sqlite_database, spec)
    plan_job(sqlite_database, store, settings, job.id)
    assert [chunk.stop_row - chunk.start_row for chunk in chunks_of(sqlite_database, job.id)] == [3, 3, 3, 1]


def test_too_many_chunks_fail_the_job_with_a_reason(
    tmp_path: Path, settings: Settings, store: Store, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "MOST_REQUESTED_CHUNKS", 5)
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
    """Otherwise a job would lack a chunk and never complete."""
    job = job_ledger.submit(database, spec_of("rows.jsonl"))

    def succeed() -> None:
        planning.plan(database, job.id, [ChunkRange(0, 7, {}), ChunkRange(7, 20, {})])

    with pytest.raises(Conflict):
        planning.plan(database, job.id, interrupted_by(succeed))
    assert [chunk.stop_row for chunk in chunks_of(database, job.id)] == [7, 20]


def test_two_plannings_of_one_job_never_mix(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """One planner is frozen after its first chunk; another one starts; the first then continues and is refused."""
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


def test_planning_of_an_unknown_job_raises_not_found(
    settings: Settings, store: Store, sqlite_database: Database
) -> None:
    with pytest.raises(NotFound):
        plan_job(sqlite_database, store, settings, "job_0")
