"""The scheduler's part in batches, without workers: results are written by hand, faults come at every step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.data.rows import Result, RowError
from jobs.data.sinks import open_sink
from jobs.data.store import Store, upload_key
from jobs.db.database import Database
from jobs.db.states import BatchState, JobState
from jobs.db.tables import Batch, Job, StoredFile
from jobs.errors import ServiceUnavailable
from jobs.ledger import batch_ends, batches, chunks, leases, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.batches import NewBatch
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leases import Grant
from jobs.specs.inference import parse_spec
from scheduler.control.finalizer import finalize_job
from scheduler.control.planner import plan_job
from scheduler.control.retention import retain
from scheduler.openai.lifecycle import abort_batch, finish_batch, read_batch
from tests.support import tiny

OTHER = "/v1/classify"


class Hall:
    """A database, a store and the duties on them."""

    def __init__(self, db: Database, settings: Settings, folder: Path) -> None:
        model = tiny.tiny_classifier(folder / "classifier")
        catalogue = {"models": {"a": {"model": str(model)}, "b": {"model": str(model), "dtype": "float16"}}}
        self.db, self.store = db, Store(settings.resolved_store_url)
        self.settings = Settings(**{**settings.model_dump(exclude_unset=True), **catalogue})

    def upload(self, lines: list[Any]) -> str:
        """The id of a batch file; equal lines are one file."""
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        file_id = f"file_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        stored = self.store.put(upload_key(file_id), [text.encode()])
        with self.db.write() as session:
            file = StoredFile(
                id=file_id, filename="b.jsonl", purpose="batch", key=stored.key, num_bytes=stored.num_bytes,
                sha256=stored.sha256, created_at=session.time(),
            )  # fmt: skip
            session.merge(file)
        return file_id

    def create(self, lines: list[Any], **fields: Any) -> Batch:
        """A validating batch of these lines."""
        asked = {"endpoint": OTHER, "completion_window": "1d", "window_seconds": 86400, "digest": "d", **fields}
        return batches.create(self.db, NewBatch(input_file_id=self.upload(lines), **asked), project="default")

    def read_batch(self, batch: Batch) -> Batch:
        """The batch after its reading."""
        read_batch(self.db, self.store, self.settings, batch.id)
        return self.look(batch)

    def finish_batch(self, batch: Batch) -> Batch:
        """The batch after a try to finish it."""
        finish_batch(self.db, self.store, self.settings, batch.id)
        return self.look(batch)

    def look(self, batch: Batch) -> Batch:
        """The batch as it is now."""
        with self.db.read() as session:
            return batches.get(session, batch.id)

    def jobs(self, batch: Batch) -> list[Job]:
        """Its jobs as they are now."""
        with self.db.read() as session:
            return batches.jobs_of(session, batch.id)

    def compute(self, job: Job, answer: Callable[[int], Any], *, most_chunks: int = 100) -> None:
        """Plan a job and record results for some of its chunks, as a worker does."""
        plan_job(self.db, self.store, self.settings, job.id)
        slots.register(self.db, [slots.SlotInfo("s", "host", "cpu", None, "CPU", 0, 1)])
        slots.enter(self.db, "s", "worker", self.settings)
        (lease_id,) = leases.grant(self.db, Grant(job.id, ("s",)), lease_seconds=60)
        assert leases.activate(self.db, lease_id, "worker", lease_seconds=60) is not None
        spec = parse_spec(job.spec)
        sink = open_sink(spec.output, vector_output=spec.vector_output, database=self.db, store=self.store)
        for claim in chunks.claim(self.db, lease_id, limit=most_chunks):
            results = [self._result(row, answer(row)) for row in range(claim.start_row, claim.stop_row)]
            chunk = ChunkResults(claim.start_row, claim.stop_row, results, None)
            chunks.commit(self.db, lease_id, [chunk], lambda session, r=results: sink.record(session, job.id, r))
        leases.release(self.db, lease_id, "drained")
        finalize_job(self.db, self.store, self.settings, job.id)

    def _result(self, row: int, answer: Any) -> Result:
        error = answer if isinstance(answer, RowError) else None
        return Result(row, None, None if error else answer, error, num_tokens=3)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of an output or error file."""
        with self.db.read() as session:
            file = session.get(StoredFile, file_id)
        assert file is not None
        with self.store.open(file.key) as content:
            return [json.loads(line) for line in content]


@pytest.fixture
def hall(sqlite_database: Database, settings: Settings, tmp_path: Path) -> Hall:
    """An empty one."""
    return Hall(sqlite_database, settings, tmp_path)


def line(number: int, model: str = "a", **body: Any) -> dict[str, Any]:
    """One line of an input file."""
    return {"custom_id": f"c{number}", "method": "POST", "url": OTHER, "body": {"model": model, "input": "x", **body}}


def good(_row: int) -> Any:
    """What a classifier answers for one text."""
    return [[{"label": "label-1", "score": 0.5}]]


def test_lines_come_back_in_order_over_all_jobs(hall: Hall) -> None:
    """Two models, two settings of one, and a refused line: five lines, one answer each."""
    lines = [line(0), line(1, "b"), line(2, top_k=2), line(3, input=None), line(4, "b")]
    batch = hall.read_batch(hall.create(lines))
    assert batch.state == BatchState.IN_PROGRESS
    specs = {job.id: parse_spec(job.spec) for job in hall.jobs(batch)}
    kinds = {(spec.dtype, spec.parameters.get("top_k")): job_id for job_id, spec in specs.items()}
    assert set(kinds) == {("auto", None), ("float16", None), ("auto", 2)}
    by_id = {job.id: job for job in hall.jobs(batch)}
    jobs = [by_id[kinds[kind]] for kind in (("auto", None), ("float16", None), ("auto", 2))]
    refused_first = lambda row: RowError("null_value", "no text") if row == 1 else good(row)  # noqa: E731
    for job, answer in zip(jobs, (refused_first, good, good), strict=True):
        assert hall.finish_batch(batch).state == BatchState.IN_PROGRESS
        hall.compute(job, answer)
    ended = hall.finish_batch(batch)
    assert (ended.state, ended.num_completed, ended.num_failed, ended.input_tokens) == ("completed", 4, 1, 12)
    answers = hall.lines(ended.output_file_id)
    assert [answer["custom_id"] for answer in answers] == ["c0", "c1", "c2", "c4"]
    assert [answer["response"]["body"]["model"] for answer in answers] == ["a", "b", "a", "b"]
    (refused,) = hall.lines(ended.error_file_id)
    assert refused["response"]["body"]["error"]["param"] == "input"
    assert list(hall.store.list("batches/")) == []


def test_a_model_that_changes_after_the_reading_fails_its_jobs(hall: Hall) -> None:
    batch = hall.read_batch(hall.create([line(0), line(1, "b")]))
    config = Path(hall.settings.models["a"].model) / "config.json"
    config.write_text(config.read_text() + " ")
    for job in hall.jobs(batch):
        plan_job(hall.db, hall.store, hall.settings, job.id)
    ended = hall.finish_batch(batch)
    assert ended.state == BatchState.FAILED
    assert ended.errors is not None
    refusal = f"model '{config.parent}': config.json changed after the job was submitted"
    assert [error["message"] for error in ended.errors] == [refusal, refusal]


def test_a_reading_that_was_cut_off_is_done_again(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the files and the jobs leaves neither a second job nor a stray object."""
    batch = hall.create([line(0), line(1)])

    def fall(*_: object) -> None:
        raise ServiceUnavailable("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(batches, "accept", fall)
        with pytest.raises(ServiceUnavailable):
            read_batch(hall.db, hall.store, hall.settings, batch.id)
    assert hall.look(batch).state == BatchState.VALIDATING
    assert len(list(hall.store.list("batches/"))) == 1
    hall.read_batch(batch)
    assert [job.state for job in hall.jobs(batch)] == [JobState.VALIDATING]
    assert len(list(hall.store.list("batches/"))) == 1, "what the first reading left is gone"


def test_two_readers_make_one_set_of_jobs(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that lost the lead while it read must change nothing."""
    batch = hall.create([line(0)])
    accept = batches.accept

    def overtaken(db: Database, batch_id: str, plan: Any) -> None:
        monkeypatch.setattr(batches, "accept", accept)
        read_batch(hall.db, hall.store, hall.settings, batch_id)
        accept(db, batch_id, plan)

    monkeypatch.setattr(batches, "accept", overtaken)
    hall.read_batch(batch)
    (job,) = hall.jobs(batch)
    hall.compute(job, good)
    assert hall.finish_batch(batch).num_completed == 1


def test_a_reading_that_is_not_wanted_any_more_leaves_the_batch(hall: Hall) -> None:
    """The next leader reads it."""
    batch = hall.create([line(number) for number in range(1500)])
    read_batch(hall.db, hall.store, hall.settings, batch.id, is_wanted=lambda: False)
    assert hall.look(batch).state == BatchState.VALIDATING
    assert list(hall.store.list("batches/")) == []


def test_files_that_were_half_written_are_written_again(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the files and the end gives the same files at the next try."""
    batch = hall.read_batch(hall.create([line(0), line(1)]))
    hall.compute(hall.jobs(batch)[0], good)

    def fall(*_: object, **__: object) -> None:
        raise ServiceUnavailable("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(batch_ends, "end", fall)
        with pytest.raises(ServiceUnavailable):
            finish_batch(hall.db, hall.store, hall.settings, batch.id)
    assert hall.look(batch).state == BatchState.FINALIZING
    ended = hall.finish_batch(batch)
    assert [answer["custom_id"] for answer in hall.lines(ended.output_file_id)] == ["c0", "c1"]


def test_a_job_that_broke_fails_its_lines_alone(hall: Hall) -> None:
    """One bad model in a file must not take the answers of the others away."""
    batch = hall.read_batch(hall.create([line(0), line(1, "b"), line(2)]))
    first, second = sorted(hall.jobs(batch), key=lambda job: job.spec["dtype"])
    hall.compute(first, good)
    job_ledger.fail(hall.db, second.id, ServiceUnavailable("the hub is away"))
    ended = hall.finish_batch(batch)
    assert (ended.state, ended.num_completed, ended.num_failed) == ("completed", 2, 1)
    (lost,) = hall.lines(ended.error_file_id)
    assert (lost["custom_id"], lost["response"], lost["error"]["code"]) == ("c1", None, "service_unavailable")
    assert ended.errors is not None
    assert ended.errors[0]["message"] == "the hub is away"


def test_a_batch_whose_every_job_broke_has_failed(hall: Hall) -> None:
    """`completed` would make a client look for an output."""
    batch = hall.read_batch(hall.create([line(0)]))
    job_ledger.fail(hall.db, hall.jobs(batch)[0].id, ServiceUnavailable("no device"))
    ended = hall.finish_batch(batch)
    assert (ended.state, ended.output_file_id) == (BatchState.FAILED, None)


def test_a_retry_takes_over_what_was_answered(hall: Hall) -> None:
    """Only the rest runs, even over a retry of a retry."""
    lines = [line(number) for number in range(40)]
    batch = hall.read_batch(hall.create(lines))
    hall.compute(hall.jobs(batch)[0], lambda row: RowError("poison_row", "x") if row % 3 else good(0))
    first = hall.finish_batch(batch)
    assert (first.num_completed, first.num_failed) == (14, 26)
    second = hall.read_batch(hall.create(lines, retry_of=first.id))
    assert (second.num_lines, second.num_carried) == (40, 14)
    with hall.db.read() as session:
        assert batches.counts(session, second).completed == 14
    hall.compute(hall.jobs(second)[0], lambda row: good(0) if row else RowError("poison_row", "x"))
    second = hall.finish_batch(second)
    third = hall.read_batch(hall.create(lines, retry_of=second.id))
    hall.compute(hall.jobs(third)[0], good)
    third = hall.finish_batch(third)
    assert (third.state, third.num_completed, third.num_failed, third.input_tokens) == ("completed", 40, 0, 120)
    assert [answer["custom_id"] for answer in hall.lines(third.output_file_id)] == [f"c{n}" for n in range(40)]
    nothing = hall.read_batch(hall.create(lines, retry_of=third.id))
    assert hall.jobs(nothing) == []
    assert hall.finish_batch(nothing).num_completed == 40


def test_a_retry_of_a_lost_output_is_refused(hall: Hall) -> None:
    """Running everything again would cost what nobody asked for."""
    lines = [line(0), line(1)]
    batch = hall.read_batch(hall.create(lines))
    hall.compute(hall.jobs(batch)[0], good)
    first = hall.finish_batch(batch)
    with hall.db.write() as session:
        session.delete(session.get(StoredFile, first.output_file_id))
    failed = hall.read_batch(hall.create(lines, retry_of=first.id))
    assert failed.state == BatchState.FAILED
    assert failed.errors is not None
    assert "is gone" in failed.errors[0]["message"]


def test_answers_that_cannot_be_written_end_the_batch(hall: Hall) -> None:
    """Nobody may wait for ever for what a fault of ours keeps back."""
    batch = hall.read_batch(hall.create([line(0)]))
    hall.compute(hall.jobs(batch)[0], good)
    batch_ends.begin_finalizing(hall.db, batch.id)
    abort_batch(hall.db, batch.id, ServiceUnavailable("a fault"))
    ended = hall.look(batch)
    assert (ended.state, ended.num_completed, ended.output_file_id) == (BatchState.FAILED, 1, None)


def test_a_line_over_the_limits_is_said(hall: Hall) -> None:
    """Limits are settings, and each has its sentence."""
    hall.settings = hall.settings.model_copy(update={"max_row_bytes": 200, "batch_lines": 3})
    long = hall.read_batch(hall.create([line(0), line(1, input="x" * 500), line(2)]))
    assert [(error["code"], error["line"]) for error in long.errors or []] == [("line_too_long", 2)]
    many = hall.read_batch(hall.create([line(number) for number in range(4)]))
    assert [error["code"] for error in many.errors or []] == ["too_many_tasks"]


def test_old_batches_are_forgotten_and_live_ones_keep_their_jobs(hall: Hall) -> None:
    """A batch's answers are made of its jobs' results, however old."""
    live = hall.read_batch(hall.create([line(0), line(1, "b")]))
    job = hall.jobs(live)[0]
    hall.compute(job, good)
    dead = hall.read_batch(hall.create([line(2)]))
    hall.compute(hall.jobs(dead)[0], good)
    hall.finish_batch(dead)
    with hall.db.write() as session:
        for batch in (live, dead):
            for one in batches.jobs_of(session, batch.id):
                one.ended_at = None if one.ended_at is None else 1.0
            batches.get(session, batch.id).created_at = 1.0
    settings = hall.settings.model_copy(update={"job_days": 1.0})
    retain(hall.db, hall.store, settings)
    with hall.db.read() as session:
        assert session.get(Batch, dead.id) is None
        assert session.get(Job, job.id) is not None
        assert session.get(Batch, live.id) is not None
