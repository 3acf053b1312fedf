"""One lease from claim to commit: every row is recorded once, through failures and stops at any moment."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sqlmodel import Session

from jobs.config.activities import Activity
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import StopReason
from jobs.db.tables import SafeBudget
from jobs.errors import InvalidInput, LostLease, MachineError, ServiceUnavailable, UserError
from jobs.ledger import chunks
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leasing import leases
from jobs.ledger.leasing.leases import WorkingLease
from jobs.ledger.timing import stage_times
from jobs.ledger.timing.stage_times import StageTimes
from tests.support import tiny
from tests.support.leased_job import LeasedJob, threads_of_the_pipeline
from tests.support.scripted_model import ScriptedModel
from worker.inference import writer
from worker.inference.lease_run import run_lease
from worker.inference.tasks import load_task_model
from worker.models.cache import ModelCache
from worker.models.model_ref import ModelRef
from worker.models.task_model import TaskModel
from worker.stop import Outcome, Stop
from worker.wire.pulse import Beat, Pulse

CPU = torch.device("cpu")
RECORDS = [{"id": f"r{number}", "text": "word " * (number % 7 + 1) + f"{number}"} for number in range(80)]
"""Ten chunks of eight rows, each packed into several batches."""
BATCHING = {"max_tokens": 24}


class LeaseRunner:
    """A job, a scripted model, and the parts of a runner around `run_lease`."""

    def __init__(self, leased: LeasedJob, slot_id: str = "slot-0") -> None:
        self.leased = leased
        self.model = ScriptedModel()
        self.stop = Stop()
        self.beats: list[int | None] = []
        """First rows of the chunks that were reported to be in the model, and None each time that none was."""
        self.models = ModelCache(1, CPU, load=lambda *_, **__: self.model)
        self.lease: WorkingLease = leased.lease(slot_id)

    def run(self) -> Outcome:
        """Run the lease."""
        return run_lease(
            self.lease,
            self.leased.spec,
            database=self.leased.database,
            store=self.leased.store,
            rules=self.leased.settings,
            lease_times=self.leased.settings,
            chunk_seconds=self.leased.settings.chunk_seconds,
            encode_threads=2,
            num_threads=2,
            models=self.models,
            stop=self.stop,
            pulse=Pulse(self._hear),
        )

    def _hear(self, beat: Beat) -> None:
        if not beat.stage.startswith(("feed-", "writer-")):
            self.beats.append(beat.chunk if beat.activity is Activity.FORWARD else None)

    def expect_all_good(self) -> None:
        """Every row has its own output, once, in order."""
        results = self.leased.results()
        assert [result.row_index for result in results] == list(range(len(RECORDS)))
        assert [result.key for result in results] == [record["id"] for record in RECORDS]
        assert [result.output for result in results] == [record["text"][::-1] for record in RECORDS]

    def expect_all_but(self, failed: dict[int, str]) -> None:
        """Every row has its own output, except for some with a row error of this code."""
        results = self.leased.results()
        assert [result.row_index for result in results] == list(range(len(RECORDS)))
        codes = {result.row_index: result.error.code for result in results if result.error is not None}
        assert codes == failed
        good = [result for result in results if result.error is None]
        assert [result.output for result in good] == [RECORDS[result.row_index]["text"][::-1] for result in good]


@pytest.fixture
def runner(sqlite_database: Database, settings: Settings, tmp_path: Path) -> LeaseRunner:
    """A runner with one lease, on SQLite."""
    return LeaseRunner(LeasedJob(sqlite_database, settings, tmp_path, RECORDS, batching=BATCHING))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Whatever a test does to it, the pipeline ends all of its threads."""
    yield
    assert threads_of_the_pipeline() == []


def raising_once(error: Exception) -> Callable[..., None]:
    """A hook that raises the first time only."""
    errors = [error]

    def hook(*_: object) -> None:
        if errors:
            raise errors.pop()

    return hook


def refusing(row: int, error: Callable[[], Exception]) -> Callable[[Sequence[str]], None]:
    """A hook that raises whenever this row is among the texts."""
    text = RECORDS[row]["text"]

    def hook(texts: Sequence[str]) -> None:
        if text in texts:
            raise error()

    return hook


# -- the ordinary way --------------------------------------------------------------------------------------------


def test_every_row_is_recorded_once_and_the_job_is_completed(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    """The main promise, on SQLite and PostgreSQL."""
    runner = LeaseRunner(LeasedJob(database, settings, tmp_path, RECORDS, batching=BATCHING))
    assert runner.run() == Outcome.DRAINED
    runner.expect_all_good()
    job = runner.leased.job()
    assert (str(job.state), job.num_done, job.num_failed) == ("completed", 80, 0)
    assert job.num_tokens == sum(len(record["text"].split()) for record in RECORDS)
    assert set(runner.leased.states()) == {"done"}


@pytest.mark.parametrize("to", ["jsonl", "parquet"])
def test_file_sinks_get_every_row(to: str, sqlite_database: Database, settings: Settings, tmp_path: Path) -> None:
    """Parts are staged before the transaction that names them."""
    runner = LeaseRunner(LeasedJob(sqlite_database, settings, tmp_path, RECORDS, batching=BATCHING, output={"to": to}))
    assert runner.run() == Outcome.DRAINED
    runner.expect_all_good()
    assert str(runner.leased.job().state) == "finalizing", "the finalizer has files to merge"


def test_tokenizing_runs_beside_the_device(runner: LeaseRunner) -> None:
    """The device never waits for the tokenizer of the next chunk."""
    next_is_tokenized = threading.Event()
    runner.model.on_encode = lambda rows: next_is_tokenized.set() if rows[0].row_index == 8 else None

    def forward(texts: list[str]) -> None:
        assert next_is_tokenized.wait(300), "the second chunk is tokenized while the first is in its forward pass"

    runner.model.on_forward = forward
    assert runner.run() == Outcome.DRAINED
    runner.expect_all_good()
    assert threading.current_thread().name not in runner.model.threads


def test_equal_chunks_give_equal_batches_in_any_timing(
    sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """A run with faults gives the same bits as one without, as each row always meets the same neighbours."""
    seen = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        runner = LeaseRunner(LeasedJob(sqlite_database, settings, folder, RECORDS, batching=BATCHING))
        pause = threading.Event()
        slow = [None, runner.model.on_encode, runner.model.on_forward][number]
        if slow is not None:
            runner.model.on_encode = lambda rows, pause=pause: pause.wait(0.01) and None
        if number == 2:
            runner.model.on_forward = lambda texts, pause=pause: pause.wait(0.003) and None
        assert runner.run() == Outcome.DRAINED
        seen.append(runner.model.batches)
        leases.release(sqlite_database, runner.lease.lease_id, "drained")
    assert seen[0] == seen[1] == seen[2]


def test_a_row_that_is_bad_in_the_input_is_recorded_as_such(
    sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """A malformed line is one row error with its line number; its neighbours are computed."""
    records = [{"id": "a", "text": "good"}, "{not json", {"id": "c", "text": "better"}]
    leased = LeasedJob(sqlite_database, settings, tmp_path, records)
    assert LeaseRunner(leased).run() == Outcome.DRAINED
    first, second, third = leased.results()
    assert (first.output, third.output) == ("doog", "retteb")
    assert second.error is not None
    assert second.error.line == 2
    assert leased.job().num_failed == 1


def test_the_heartbeat_names_the_chunk_being_computed(runner: LeaseRunner) -> None:
    """A runner that dies is blamed on the chunk it computed, and on no other."""
    computing: list[tuple[int | None, str]] = []
    runner.model.on_forward = lambda texts: computing.append((runner.beats[-1], texts[0]))
    runner.run()
    assert runner.beats[0] is None
    assert runner.beats[-1] is None
    for start_row, text in computing:
        row = int(text.split()[-1])
        assert start_row == row // 8 * 8


def test_the_log_has_speed_and_budget(runner: LeaseRunner, caplog: pytest.LogCaptureFixture) -> None:
    """`stoker logs` shows what a lease did."""
    with caplog.at_level(logging.INFO):
        runner.run()
    assert "loaded scripted" in caplog.text
    assert "batches of at most 24 tokens" in caplog.text
    assert "recorded 80 rows (0 failed) in 10 chunks" in caplog.text


# -- stops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["yield", "shutdown"])
def test_a_yield_finishes_the_chunk_and_gives_the_rest_back(runner: LeaseRunner, reason: str) -> None:
    """Preemption loses no computed row and leaves nothing leased; nothing counts as a lost attempt."""

    def forward(texts: list[str]) -> None:
        if runner.beats[-1] == 16 and not runner.stop.is_requested:
            runner.stop.request(reason)

    runner.model.on_forward = forward
    assert runner.run() == Outcome.STOPPED
    assert runner.leased.states() == ["done"] * 3 + ["pending"] * 7
    assert {chunk.attempt for chunk in runner.leased.chunks()} == {1}
    assert {chunk.lease_id for chunk in runner.leased.chunks()[3:]} == {None}
    assert runner.leased.job().num_done == 24


def test_a_cancel_ends_at_the_next_batch_and_keeps_finished_rows(runner: LeaseRunner) -> None:
    """The rest of a cancelled job is not computed."""

    def forward(texts: list[str]) -> None:
        if runner.beats[-1] == 16:
            runner.stop.request(StopReason.CANCEL)

    runner.model.on_forward = forward
    assert runner.run() == Outcome.STOPPED
    assert runner.leased.states() == ["done"] * 2 + ["pending"] * 8
    batches_of_third = [batch for batch in runner.model.batches if 16 <= int(batch[0].split()[-1]) < 24]
    assert len(batches_of_third) == 1


def test_a_stop_before_the_first_claim_computes_nothing(runner: LeaseRunner) -> None:
    """A stop that comes while a model loads is not forgotten."""
    runner.stop.request(StopReason.YIELD)
    assert runner.run() == Outcome.STOPPED
    assert runner.model.batches == []
    assert set(runner.leased.states()) == {"pending"}


def test_a_stop_reaches_a_lease_that_waits_for_its_input(runner: LeaseRunner) -> None:
    """A slot whose reader is slow still obeys a stop."""
    release = threading.Event()

    def encode(rows: object) -> None:
        runner.stop.request(StopReason.YIELD)
        release.wait(0.05)

    runner.model.on_encode = encode
    assert runner.run() == Outcome.STOPPED
    assert set(runner.leased.states()) == {"pending"}


# -- rows that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["on_collate", "on_forward", "on_decode"])
def test_a_row_that_fails_alone_is_a_row_error_and_its_neighbours_are_not(runner: LeaseRunner, step: str) -> None:
    """One bad row costs the user that row, and the error says where to find it."""
    setattr(runner.model, step, refusing(13, lambda: ValueError("cannot do this\nand a traceback")))
    assert runner.run() == Outcome.DRAINED
    runner.expect_all_but({13: "row_failed"})
    error = runner.leased.results()[13].error
    assert error is not None
    assert error.message == "ValueError: cannot do this"
    assert error.line == 14


@pytest.mark.parametrize("step", ["on_collate", "on_forward", "on_decode"])
def test_a_failure_that_does_not_come_back_costs_no_row(runner: LeaseRunner, step: str) -> None:
    """A temporary failure is not blamed on a row."""
    setattr(runner.model, step, raising_once(RuntimeError("a hiccup")))
    assert runner.run() == Outcome.DRAINED
    runner.expect_all_good()


def test_a_model_that_fails_on_every_row_fails_the_job_once(runner: LeaseRunner) -> None:
    """One cause is one error of the job, and its rows are recorded all the same."""

    def forward(texts: list[str]) -> None:
        raise KeyError("labels")

    runner.model.on_forward = forward
    assert runner.run() == Outcome.DRAINED
    job = runner.leased.job()
    assert (str(job.state), job.num_failed, job.error_code) == ("failed", 80, "too_many_row_errors")
    assert job.error_message is not None
    assert "all 80 rows failed with the same error; row 0: row_failed: KeyError" in job.error_message
    assert {result.error.code for result in runner.leased.results() if result.error} == {"row_failed"}


# -- out of memory -----------------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch_and_is_remembered(runner: LeaseRunner) -> None:
    """The same rows are computed in smaller batches, and the next lease starts with what fits."""

    def forward(texts: list[str]) -> None:
        if len(texts) * max(len(text.split()) for text in texts) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    runner.model.on_forward = forward
    assert runner.run() == Outcome.DRAINED
    runner.expect_all_good()
    with runner.leased.database.read() as session:
        safe = session.get(SafeBudget, ("fill-mask|scripted|auto", "cpu"))
    assert safe is not None
    assert safe.max_tokens <= 12
    too_large = [batch for batch in runner.model.batches if len(batch) * max(len(text.split()) for text in batch) > 12]
    assert len(too_large) <= 2, "it is not tried again at a size that did not fit"

    folder = runner.leased.input.parent / "again"
    folder.mkdir()
    leases.release(runner.leased.database, runner.lease.lease_id, "drained")
    again = LeaseRunner(LeasedJob(runner.leased.database, runner.leased.settings, folder, RECORDS, batching=BATCHING))
    assert again.run() == Outcome.DRAINED
    again.expect_all_good()
    assert all(len(batch) * max(len(text.split()) for text in batch) <= 12 for batch in again.model.batches)


def test_a_row_too_large_by_itself_is_a_row_error_and_keeps_the_budget(runner: LeaseRunner) -> None:
    """One giant row must not make all others slow, nor fail the job."""
    runner.model.on_forward = refusing(13, lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert runner.run() == Outcome.DRAINED
    runner.expect_all_but({13: "out_of_memory"})
    with runner.leased.database.read() as session:
        assert session.get(SafeBudget, ("fill-mask|scripted|auto", "cpu")) is None


def test_an_out_of_memory_while_decoding_is_survived(runner: LeaseRunner) -> None:
    """Copying a batch back needs memory as well."""
    runner.model.on_decode = raising_once(MemoryError())
    assert runner.run() == Outcome.DRAINED
    runner.expect_all_good()


def test_warm_models_are_dropped_before_a_batch_is_made_smaller(runner: LeaseRunner) -> None:
    """A model that is only kept warm must not slow the running one."""
    warm = LeasedJob.spec_of("idle")
    runner.models = ModelCache(2, CPU, load=lambda *_, **__: runner.model)
    runner.models.get(ModelRef.of(warm), warm.task_parameters)

    def forward(texts: list[str]) -> None:
        if len(runner.models.keys()) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    runner.model.on_forward = forward
    assert runner.run() == Outcome.DRAINED
    runner.expect_all_good()
    assert runner.models.keys() == ["fill-mask|scripted|auto"]
    with runner.leased.database.read() as session:
        assert session.get(SafeBudget, ("fill-mask|scripted|auto", "cpu")) is None


# -- faults of the machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["on_forward", "on_decode"])
def test_a_poisoned_device_needs_a_new_runner_and_loses_nothing(runner: LeaseRunner, step: str) -> None:
    """After a device-side assert every call fails: the rows go to another process, not into row errors."""
    setattr(runner.model, step, refusing(20, lambda: RuntimeError("CUDA error: device-side assert triggered")))
    with pytest.raises(MachineError, match="new process"):
        runner.run()
    assert runner.beats[-1] == 16, "the chunk that is to blame"
    states = runner.leased.states()
    assert states[2:] == ["pending"] * 8
    assert runner.leased.job().num_failed == 0


def test_where_the_time_went_is_recorded_with_the_rows(runner: LeaseRunner) -> None:
    assert runner.run() is Outcome.DRAINED
    with runner.leased.database.read() as session:
        [times] = stage_times.of_jobs(session, [runner.lease.job_id, "job_other"]).values()
    assert times.forward > 0
    assert times.commit > 0
    assert times.load > 0
    assert times.num_tokens == sum(len(record["text"].split()) for record in RECORDS)
    assert times.num_padded_tokens >= times.num_tokens


def test_a_user_error_midway_fails_the_job_and_commits_the_rows_before(runner: LeaseRunner) -> None:
    """An input that is changed while it is read fails the job with one sentence."""
    second_chunk = threading.Event()

    def encode(rows: Sequence[Any]) -> None:
        if rows[0].row_index == 8:
            second_chunk.set()
            raise InvalidInput("the input has changed")

    runner.model.on_encode = encode
    with pytest.raises(UserError, match="has changed"):
        runner.run()
    assert second_chunk.is_set()
    assert "leased" not in runner.leased.states()


def test_a_lost_lease_records_nothing_more(runner: LeaseRunner) -> None:
    """A zombie's results never reach the database."""

    def forward(texts: list[str]) -> None:
        if runner.beats[-1] == 0 and len(runner.model.batches) == 1:
            leases.crash(
                runner.leased.database,
                runner.lease.lease_id,
                MachineError(),
                computing=None,
                retries=runner.leased.settings,
            )

    runner.model.on_forward = forward
    with pytest.raises(LostLease):
        runner.run()
    assert runner.leased.results() == []
    assert runner.leased.job().num_done == 0


@pytest.fixture
def flaky_commit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[int]]]:
    """Make the database go away at a commit: `before` it is done, or `after`, so that only the answer is lost."""
    real = chunks.commit
    calls: list[int] = []

    def install(when: str) -> list[int]:
        def commit(
            db: Database,
            lease_id: str,
            computed: Sequence[ChunkResults],
            record: Callable[[Session], None],
            times: StageTimes,
            *,
            completes: bool,
        ) -> None:
            calls.append(len(computed))
            fails = len(calls) == 1 or when == "always"
            if fails and when != "after":
                raise ServiceUnavailable("the database cannot be used: connection refused")
            real(db, lease_id, computed, record, times, completes=completes)
            if fails:
                raise ServiceUnavailable("the database cannot be used: server closed the connection unexpectedly")

        monkeypatch.setattr(writer.chunks, "commit", commit)
        return calls

    yield install
    monkeypatch.undo()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_whose_answer_is_lost_is_recorded_once(
    runner: LeaseRunner, when: str, flaky_commit: Callable[[str], list[int]]
) -> None:
    """After a lost answer the chunks are read back by token: neither lost nor recorded twice."""
    calls = flaky_commit(when)
    assert runner.run() == Outcome.DRAINED
    runner.expect_all_good()
    assert runner.leased.job().num_done == 80
    assert calls


def test_a_database_that_stays_away_ends_the_lease(
    sqlite_database: Database, settings: Settings, tmp_path: Path, flaky_commit: Callable[[str], list[int]]
) -> None:
    """A writer that cannot write must stop the device, which would otherwise wait on a full queue for ever."""
    impatient = settings.model_copy(update={"lease_seconds": 0.2})
    runner = LeaseRunner(LeasedJob(sqlite_database, impatient, tmp_path, RECORDS * 4, batching=BATCHING))
    flaky_commit("always")
    with pytest.raises(ServiceUnavailable):
        runner.run()
    assert runner.leased.results() == []
    assert set(runner.leased.states()) == {"pending"}


# -- two slots ---------------------------------------------------------------------------------------------------


def test_two_slots_share_one_job_and_every_row_is_recorded_once(runner: LeaseRunner) -> None:
    """Work stealing: both take chunks until none is left."""
    other = LeaseRunner(runner.leased, "slot-1")
    both = threading.Barrier(2, timeout=300)
    for one in (runner, other):
        first = threading.Event()

        def forward(texts: list[str], first: threading.Event = first) -> None:
            if not first.is_set():
                first.set()
                both.wait()  # both have a chunk before either goes on

        one.model.on_forward = forward
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda one=one: outcomes.append(one.run())) for one in (runner, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert outcomes == [Outcome.DRAINED, Outcome.DRAINED]
    runner.expect_all_good()
    assert runner.model.batches
    assert other.model.batches
    assert str(runner.leased.job().state) == "completed"


# -- a real model ------------------------------------------------------------------------------------------------


def test_a_real_model_gives_the_pipelines_own_results(database: Database, settings: Settings, tmp_path: Path) -> None:
    """From a file, through a real tokenizer and a real BERT, into the database, and equal to transformers' pipeline."""
    folder = tiny.tiny_classifier(tmp_path / "model")
    records = [{"id": f"r{number}", "text": " ".join(tiny.SENTENCES[: number % 5 + 1])} for number in range(50)]
    leased = LeasedJob(
        database, settings, tmp_path, records, chunk_rows=16, task="text-classification", model=str(folder)
    )
    runner = LeaseRunner(leased)
    runner.models = ModelCache(1, CPU, load=partial(load_task_model, rules=runner.leased.settings))
    assert runner.run() == Outcome.DRAINED
    results = leased.results()
    classify = transformers.pipeline("text-classification", model=str(folder))
    for record, result in zip(records, results, strict=True):
        (expected,) = classify([record["text"]])
        output = result.output[0] if isinstance(result.output, list) else result.output
        assert result.key == record["id"]
        assert output["label"] == expected["label"]
        assert output["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert leased.job().num_tokens > len(records)


def test_embeddings_are_the_same_bits_in_every_run(
    sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """A run with faults gives the same bits as one without; here one run on one slot, one on two."""
    loading = threading.Lock()

    def load(*arguments: Any, **options: Any) -> TaskModel:
        # While transformers loads a model, it replaces functions of its own. Two threads that load at once leave them
        # replaced for the rest of the process. In production, each runner is a process of its own.
        with loading:
            return load_task_model(*arguments, rules=settings, **options)

    folder = tiny.tiny_encoder(tmp_path / "model")
    records = [{"id": f"r{number}", "text": " ".join(tiny.SENTENCES[: number % 7 + 1])} for number in range(60)]
    outputs = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        leased = LeasedJob(
            sqlite_database, settings, tmp_path / str(number), records, task="embeddings", model=str(folder)
        )
        labs = [LeaseRunner(leased, f"slot-{number}-{other}") for other in range(number + 1)]
        threads = [threading.Thread(target=runner.run) for runner in labs]
        for runner in labs:
            runner.models = ModelCache(1, CPU, load=load)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        outputs.append([result.output for result in leased.results()])
    assert len(outputs[0]) == 60
    assert all(np.array_equal(one, other) for one, other in zip(*outputs, strict=True))


def test_a_model_that_is_not_one_fails_the_job_before_anything_is_claimed(
    sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """One clear sentence, and no chunk left leased."""
    (tmp_path / "empty").mkdir()
    leased = LeasedJob(sqlite_database, settings, tmp_path, RECORDS, task="embeddings", model=str(tmp_path / "empty"))
    runner = LeaseRunner(leased)
    runner.models = ModelCache(1, CPU, load=partial(load_task_model, rules=runner.leased.settings))
    with pytest.raises(UserError):
        runner.run()
    assert set(leased.states()) == {"pending"}
