"""The scheduler's part in batches, without workers: the test writes the results, and faults come at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.data.rows import RowError
from jobs.db.database import Database
from jobs.db.states import BatchState, JobState
from jobs.db.tables import Batch, Job, StoredFile
from jobs.errors import ServiceUnavailable
from jobs.ledger import jobs as job_ledger
from jobs.ledger.groups import batch_ends, batches
from jobs.specs.inference import parse_spec
from scheduler.control.planning.planner import plan_job
from scheduler.control.retention import retain
from scheduler.openai.lifecycle import abort_batch, finish_batch, read_batch
from tests.support import tiny
from tests.support.batch_scheduler import BatchScheduler

OTHER = "/v1/classify"


@pytest.fixture
def scheduler(sqlite_database: Database, settings: Settings, tmp_path: Path) -> BatchScheduler:
    """An empty one."""
    model = str(tiny.tiny_classifier(tmp_path / "classifier"))
    return BatchScheduler(sqlite_database, settings, {"a": {"model": model}, "b": {"model": model, "dtype": "float16"}})


def line(number: int, model: str = "a", **body: Any) -> dict[str, Any]:
    """One line of an input file."""
    return {"custom_id": f"c{number}", "method": "POST", "url": OTHER, "body": {"model": model, "input": "x", **body}}


def good(_row: int) -> Any:
    """What a classifier answers for one text."""
    return [[{"label": "label-1", "score": 0.5}]]


def test_lines_come_back_in_order_over_all_jobs(scheduler: BatchScheduler) -> None:
    """Two models, two settings of one, and a refused line: five lines, one answer each."""
    lines = [line(0), line(1, "b"), line(2, top_k=2), line(3, input=None), line(4, "b")]
    batch = scheduler.read_batch(scheduler.create(lines))
    assert batch.state == BatchState.IN_PROGRESS
    specs = {job.id: parse_spec(job.spec) for job in scheduler.jobs(batch)}
    kinds = {(spec.dtype, spec.parameters.get("top_k")): job_id for job_id, spec in specs.items()}
    assert set(kinds) == {("auto", None), ("float16", None), ("auto", 2)}
    by_id = {job.id: job for job in scheduler.jobs(batch)}
    jobs = [by_id[kinds[kind]] for kind in (("auto", None), ("float16", None), ("auto", 2))]
    refused_first = lambda row: RowError("null_value", "no text") if row == 1 else good(row)  # noqa: E731
    for job, answer in zip(jobs, (refused_first, good, good), strict=True):
        assert scheduler.finish_batch(batch).state == BatchState.IN_PROGRESS
        scheduler.compute(job, answer)
    ended = scheduler.finish_batch(batch)
    assert (ended.state, ended.num_completed, ended.num_failed, ended.input_tokens) == ("completed", 4, 1, 12)
    answers = scheduler.lines(ended.output_file_id)
    assert [answer["custom_id"] for answer in answers] == ["c0", "c1", "c2", "c4"]
    assert [answer["response"]["body"]["model"] for answer in answers] == ["a", "b", "a", "b"]
    (refused,) = scheduler.lines(ended.error_file_id)
    assert refused["response"]["body"]["error"]["param"] == "input"
    assert list(scheduler.store.list("batches/")) == []


def test_a_model_that_changes_after_the_reading_fails_its_jobs(scheduler: BatchScheduler) -> None:
    batch = scheduler.read_batch(scheduler.create([line(0), line(1, "b")]))
    config = Path(scheduler.settings.models["a"].model) / "config.json"
    config.write_text(config.read_text() + " ")
    for job in scheduler.jobs(batch):
        plan_job(scheduler.db, scheduler.store, scheduler.settings, job.id)
    ended = scheduler.finish_batch(batch)
    assert ended.state == BatchState.FAILED
    assert ended.errors is not None
    refusal = f"model '{config.parent}': config.json changed after the job was submitted"
    assert [error["message"] for error in ended.errors] == [refusal, refusal]


def test_a_reading_that_was_cut_off_is_done_again(scheduler: BatchScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the files and the jobs leaves neither a second job nor a stray object."""
    batch = scheduler.create([line(0), line(1)])

    def fall(*_: object) -> None:
        raise ServiceUnavailable("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(batches, "accept", fall)
        with pytest.raises(ServiceUnavailable):
            read_batch(scheduler.db, scheduler.store, scheduler.settings, batch.id)
    assert scheduler.look(batch).state == BatchState.VALIDATING
    assert len(list(scheduler.store.list("batches/"))) == 1
    scheduler.read_batch(batch)
    assert [job.state for job in scheduler.jobs(batch)] == [JobState.VALIDATING]
    assert len(list(scheduler.store.list("batches/"))) == 1, "what the first reading left is gone"


def test_two_readers_make_one_set_of_jobs(scheduler: BatchScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that lost the lead while it read must change nothing."""
    batch = scheduler.create([line(0)])
    accept = batches.accept

    def overtaken(db: Database, batch_id: str, plan: Any) -> None:
        monkeypatch.setattr(batches, "accept", accept)
        read_batch(scheduler.db, scheduler.store, scheduler.settings, batch_id)
        accept(db, batch_id, plan)

    monkeypatch.setattr(batches, "accept", overtaken)
    scheduler.read_batch(batch)
    (job,) = scheduler.jobs(batch)
    scheduler.compute(job, good)
    assert scheduler.finish_batch(batch).num_completed == 1


def test_a_reading_that_is_not_wanted_any_more_leaves_the_batch(scheduler: BatchScheduler) -> None:
    """The next leader reads it."""
    batch = scheduler.create([line(number) for number in range(1500)])
    read_batch(scheduler.db, scheduler.store, scheduler.settings, batch.id, is_wanted=lambda: False)
    assert scheduler.look(batch).state == BatchState.VALIDATING
    assert list(scheduler.store.list("batches/")) == []


def test_files_that_were_half_written_are_written_again(
    scheduler: BatchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the files and the end gives the same files at the next try."""
    batch = scheduler.read_batch(scheduler.create([line(0), line(1)]))
    scheduler.compute(scheduler.jobs(batch)[0], good)

    def fall(*_: object, **__: object) -> None:
        raise ServiceUnavailable("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(batch_ends, "end", fall)
        with pytest.raises(ServiceUnavailable):
            finish_batch(scheduler.db, scheduler.store, scheduler.settings, batch.id)
    assert scheduler.look(batch).state == BatchState.FINALIZING
    ended = scheduler.finish_batch(batch)
    assert [answer["custom_id"] for answer in scheduler.lines(ended.output_file_id)] == ["c0", "c1"]


def test_a_job_that_broke_fails_its_lines_alone(scheduler: BatchScheduler) -> None:
    """One bad model in a file must not take the answers of the others away."""
    batch = scheduler.read_batch(scheduler.create([line(0), line(1, "b"), line(2)]))
    first, second = sorted(scheduler.jobs(batch), key=lambda job: job.spec["dtype"])
    scheduler.compute(first, good)
    job_ledger.fail(scheduler.db, second.id, ServiceUnavailable("the hub is away"))
    ended = scheduler.finish_batch(batch)
    assert (ended.state, ended.num_completed, ended.num_failed) == ("completed", 2, 1)
    (lost,) = scheduler.lines(ended.error_file_id)
    assert (lost["custom_id"], lost["response"], lost["error"]["code"]) == ("c1", None, "service_unavailable")
    assert ended.errors is not None
    assert ended.errors[0]["message"] == "the hub is away"


def test_a_batch_whose_every_job_broke_has_failed(scheduler: BatchScheduler) -> None:
    """`completed` would make a client look for an output."""
    batch = scheduler.read_batch(scheduler.create([line(0)]))
    job_ledger.fail(scheduler.db, scheduler.jobs(batch)[0].id, ServiceUnavailable("no device"))
    ended = scheduler.finish_batch(batch)
    assert (ended.state, ended.output_file_id) == (BatchState.FAILED, None)


def test_a_retry_keeps_the_finished_lines(scheduler: BatchScheduler) -> None:
    """Only the rest runs, even over a retry of a retry."""
    lines = [line(number) for number in range(40)]
    batch = scheduler.read_batch(scheduler.create(lines))
    scheduler.compute(scheduler.jobs(batch)[0], lambda row: RowError("poison_row", "x") if row % 3 else good(0))
    first = scheduler.finish_batch(batch)
    assert (first.num_completed, first.num_failed) == (14, 26)
    second = scheduler.read_batch(scheduler.create(lines, retry_of=first.id))
    assert (second.num_lines, second.num_carried) == (40, 14)
    with scheduler.db.read() as session:
        assert batches.counts(session, second).completed == 14
    scheduler.compute(scheduler.jobs(second)[0], lambda row: good(0) if row else RowError("poison_row", "x"))
    second = scheduler.finish_batch(second)
    third = scheduler.read_batch(scheduler.create(lines, retry_of=second.id))
    scheduler.compute(scheduler.jobs(third)[0], good)
    third = scheduler.finish_batch(third)
    assert (third.state, third.num_completed, third.num_failed, third.input_tokens) == ("completed", 40, 0, 120)
    assert [answer["custom_id"] for answer in scheduler.lines(third.output_file_id)] == [f"c{n}" for n in range(40)]
    nothing = scheduler.read_batch(scheduler.create(lines, retry_of=third.id))
    assert scheduler.jobs(nothing) == []
    assert scheduler.finish_batch(nothing).num_completed == 40


def test_a_retry_of_a_lost_output_is_refused(scheduler: BatchScheduler) -> None:
    """It would run all lines again."""
    lines = [line(0), line(1)]
    batch = scheduler.read_batch(scheduler.create(lines))
    scheduler.compute(scheduler.jobs(batch)[0], good)
    first = scheduler.finish_batch(batch)
    with scheduler.db.write() as session:
        session.delete(session.get(StoredFile, first.output_file_id))
    failed = scheduler.read_batch(scheduler.create(lines, retry_of=first.id))
    assert failed.state == BatchState.FAILED
    assert failed.errors is not None
    assert "was deleted" in failed.errors[0]["message"]


def test_outputs_that_cannot_be_written_end_the_batch(scheduler: BatchScheduler) -> None:
    """A client must not wait for ever because of an internal error."""
    batch = scheduler.read_batch(scheduler.create([line(0)]))
    scheduler.compute(scheduler.jobs(batch)[0], good)
    batch_ends.begin_finalizing(scheduler.db, batch.id)
    abort_batch(scheduler.db, batch.id, ServiceUnavailable("a fault"))
    ended = scheduler.look(batch)
    assert (ended.state, ended.num_completed, ended.output_file_id) == (BatchState.FAILED, 1, None)


def test_a_line_over_the_limits_is_reported(scheduler: BatchScheduler) -> None:
    """Limits are settings, and each has its sentence."""
    scheduler.settings = scheduler.settings.model_copy(update={"max_row_bytes": 200, "batch_lines": 3})
    long = scheduler.read_batch(scheduler.create([line(0), line(1, input="x" * 500), line(2)]))
    assert [(error["code"], error["line"]) for error in long.errors or []] == [("line_too_long", 2)]
    many = scheduler.read_batch(scheduler.create([line(number) for number in range(4)]))
    assert [error["code"] for error in many.errors or []] == ["too_many_tasks"]


def test_old_batches_are_deleted_and_live_ones_keep_their_jobs(scheduler: BatchScheduler) -> None:
    """A batch's answers are made of its jobs' results, however old."""
    live = scheduler.read_batch(scheduler.create([line(0), line(1, "b")]))
    job = scheduler.jobs(live)[0]
    scheduler.compute(job, good)
    dead = scheduler.read_batch(scheduler.create([line(2)]))
    scheduler.compute(scheduler.jobs(dead)[0], good)
    scheduler.finish_batch(dead)
    with scheduler.db.write() as session:
        for batch in (live, dead):
            for one in batches.jobs_of(session, batch.id):
                one.ended_at = None if one.ended_at is None else 1.0
            batches.get(session, batch.id).created_at = 1.0
    settings = scheduler.settings.model_copy(update={"job_days": 1.0})
    retain(scheduler.db, scheduler.store, settings)
    with scheduler.db.read() as session:
        assert session.get(Batch, dead.id) is None
        assert session.get(Job, job.id) is not None
        assert session.get(Batch, live.id) is not None
