"""One lease from claim to commit: every row recorded once, whatever fails and whenever a stop comes."""

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
from jobs.ledger import chunks, leases
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leases import WorkingLease
from tests.support import tiny
from tests.support.leased_job import LeasedJob, threads_of_the_pipeline
from tests.support.scripted_model import ScriptedModel
from worker.inference import writer
from worker.inference.lease_run import run_lease
from worker.inference.tasks import load_task_model
from worker.models.cache import ModelCache
from worker.models.model_ref import ModelRef
from worker.stop import Outcome, Stop
from worker.wire.pulse import Beat, Pulse

CPU = torch.device("cpu")
RECORDS = [{"id": f"r{number}", "text": "word " * (number % 7 + 1) + f"{number}"} for number in range(80)]
"""Ten chunks of eight rows, each packed into several batches."""
BATCHING = {"max_tokens": 24}


class Lab:
    """A job, a scripted model, and the parts of a runner around `run_lease`."""

    def __init__(self, leased: LeasedJob, slot_id: str = "slot-0") -> None:
        self.leased = leased
        self.model = ScriptedModel()
        self.stop = Stop()
        self.beats: list[int | None] = []
        """First rows of the chunks that were said to be in the model, and None each time that none was."""
        self.models = ModelCache(1, CPU, load=lambda *_, **__: self.model)
        self.lease: WorkingLease = leased.lease(slot_id)

    def run(self) -> Outcome:
        """Run the lease."""
        return run_lease(
            self.lease,
            self.leased.spec,
            database=self.leased.database,
            store=self.leased.store,
            settings=self.leased.settings,
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
def lab(sqlite_database: Database, settings: Settings, tmp_path: Path) -> Lab:
    """A lab on SQLite."""
    return Lab(LeasedJob(sqlite_database, settings, tmp_path, RECORDS, batching=BATCHING))


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


def test_every_row_is_recorded_once_and_the_job_is_finalizing(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    """The main promise, on SQLite and PostgreSQL."""
    lab = Lab(LeasedJob(database, settings, tmp_path, RECORDS, batching=BATCHING))
    assert lab.run() == Outcome.DRAINED
    lab.expect_all_good()
    job = lab.leased.job()
    assert (str(job.state), job.num_done, job.num_failed) == ("finalizing", 80, 0)
    assert job.num_tokens == sum(len(record["text"].split()) for record in RECORDS)
    assert set(lab.leased.states()) == {"done"}


@pytest.mark.parametrize("to", ["jsonl", "parquet"])
def test_file_sinks_get_every_row(to: str, sqlite_database: Database, settings: Settings, tmp_path: Path) -> None:
    """Parts are staged before the transaction that names them."""
    lab = Lab(LeasedJob(sqlite_database, settings, tmp_path, RECORDS, batching=BATCHING, output={"to": to}))
    assert lab.run() == Outcome.DRAINED
    lab.expect_all_good()


def test_tokenizing_runs_beside_the_device(lab: Lab) -> None:
    """The device never waits for the tokenizer of the next chunk."""
    next_is_tokenized = threading.Event()
    lab.model.on_encode = lambda rows: next_is_tokenized.set() if rows[0].row_index == 8 else None

    def forward(texts: list[str]) -> None:
        assert next_is_tokenized.wait(300), "the second chunk is tokenized while the first is in its forward pass"

    lab.model.on_forward = forward
    assert lab.run() == Outcome.DRAINED
    lab.expect_all_good()
    assert threading.current_thread().name not in lab.model.threads


def test_equal_chunks_give_equal_batches_whatever_the_timing(
    sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """A run with faults gives the same bits as one without, as each row always meets the same neighbours."""
    seen = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        lab = Lab(LeasedJob(sqlite_database, settings, folder, RECORDS, batching=BATCHING))
        pause = threading.Event()
        slow = [None, lab.model.on_encode, lab.model.on_forward][number]
        if slow is not None:
            lab.model.on_encode = lambda rows, pause=pause: pause.wait(0.01) and None
        if number == 2:
            lab.model.on_forward = lambda texts, pause=pause: pause.wait(0.003) and None
        assert lab.run() == Outcome.DRAINED
        seen.append(lab.model.batches)
        leases.release(sqlite_database, lab.lease.lease_id, "drained")
    assert seen[0] == seen[1] == seen[2]


def test_a_row_that_is_bad_in_the_input_is_recorded_as_such(
    sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """A malformed line is one row error with its line number; its neighbours are computed."""
    records = [{"id": "a", "text": "good"}, "{not json", {"id": "c", "text": "better"}]
    leased = LeasedJob(sqlite_database, settings, tmp_path, records)
    assert Lab(leased).run() == Outcome.DRAINED
    first, second, third = leased.results()
    assert (first.output, third.output) == ("doog", "retteb")
    assert second.error is not None
    assert second.error.line == 2
    assert leased.job().num_failed == 1


def test_the_heartbeat_names_the_chunk_under_computation(lab: Lab) -> None:
    """A runner that dies is blamed on the chunk it computed, and on no other."""
    computing: list[tuple[int | None, str]] = []
    lab.model.on_forward = lambda texts: computing.append((lab.beats[-1], texts[0]))
    lab.run()
    assert lab.beats[0] is None
    assert lab.beats[-1] is None
    for start_row, text in computing:
        row = int(text.split()[-1])
        assert start_row == row // 8 * 8


def test_the_log_tells_speed_and_budget(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """`stoker logs` shows what a lease did."""
    with caplog.at_level(logging.INFO):
        lab.run()
    assert "loaded scripted" in caplog.text
    assert "24 padded tokens" in caplog.text
    assert "recorded 80 rows (0 failed) in 10 chunks" in caplog.text


# -- stops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["yield", "shutdown"])
def test_a_yield_finishes_the_chunk_and_gives_the_rest_back(lab: Lab, reason: str) -> None:
    """Preemption loses no computed row and leaves nothing leased; nothing counts as a lost attempt."""

    def forward(texts: list[str]) -> None:
        if lab.beats[-1] == 16 and not lab.stop.asked:
            lab.stop.ask(reason)

    lab.model.on_forward = forward
    assert lab.run() == Outcome.STOPPED
    assert lab.leased.states() == ["done"] * 3 + ["pending"] * 7
    assert {chunk.attempt for chunk in lab.leased.chunks()} == {1}
    assert {chunk.lease_id for chunk in lab.leased.chunks()[3:]} == {None}
    assert lab.leased.job().num_done == 24


def test_a_cancel_ends_at_the_next_batch_and_keeps_what_was_done(lab: Lab) -> None:
    """Nobody pays for the rest of a cancelled job."""

    def forward(texts: list[str]) -> None:
        if lab.beats[-1] == 16:
            lab.stop.ask(StopReason.CANCEL)

    lab.model.on_forward = forward
    assert lab.run() == Outcome.STOPPED
    assert lab.leased.states() == ["done"] * 2 + ["pending"] * 8
    batches_of_third = [batch for batch in lab.model.batches if 16 <= int(batch[0].split()[-1]) < 24]
    assert len(batches_of_third) == 1


def test_a_stop_before_the_first_claim_computes_nothing(lab: Lab) -> None:
    """A stop that comes while a model loads is not forgotten."""
    lab.stop.ask(StopReason.YIELD)
    assert lab.run() == Outcome.STOPPED
    assert lab.model.batches == []
    assert set(lab.leased.states()) == {"pending"}


def test_a_stop_reaches_a_lease_that_waits_for_its_input(lab: Lab) -> None:
    """A slow reader does not make a slot deaf."""
    release = threading.Event()

    def encode(rows: object) -> None:
        lab.stop.ask(StopReason.YIELD)
        release.wait(0.05)

    lab.model.on_encode = encode
    assert lab.run() == Outcome.STOPPED
    assert set(lab.leased.states()) == {"pending"}


# -- rows that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["on_collate", "on_forward", "on_decode"])
def test_a_row_that_fails_alone_is_a_row_error_and_its_neighbours_are_not(lab: Lab, step: str) -> None:
    """One bad row costs the user that row, and the error says where to find it."""
    setattr(lab.model, step, refusing(13, lambda: ValueError("cannot do this\nand a traceback")))
    assert lab.run() == Outcome.DRAINED
    lab.expect_all_but({13: "row_failed"})
    error = lab.leased.results()[13].error
    assert error is not None
    assert error.message == "ValueError: cannot do this"
    assert error.line == 14


@pytest.mark.parametrize("step", ["on_collate", "on_forward", "on_decode"])
def test_a_failure_that_does_not_come_back_costs_no_row(lab: Lab, step: str) -> None:
    """A hiccup is not blamed on a row."""
    setattr(lab.model, step, raising_once(RuntimeError("a hiccup")))
    assert lab.run() == Outcome.DRAINED
    lab.expect_all_good()


def test_a_model_that_fails_on_every_row_fails_the_job_once(lab: Lab) -> None:
    """One cause is one error of the job, and its rows are recorded all the same."""

    def forward(texts: list[str]) -> None:
        raise KeyError("labels")

    lab.model.on_forward = forward
    assert lab.run() == Outcome.DRAINED
    job = lab.leased.job()
    assert (str(job.state), job.num_failed, job.error_code) == ("failed", 80, "too_many_row_errors")
    assert job.error_message is not None
    assert "all 80 rows failed alike; row 0: row_failed: KeyError" in job.error_message
    assert {result.error.code for result in lab.leased.results() if result.error} == {"row_failed"}


# -- out of memory -----------------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch_and_is_remembered(lab: Lab) -> None:
    """The same rows are computed in smaller batches, and the next lease starts with what fits."""

    def forward(texts: list[str]) -> None:
        if len(texts) * max(len(text.split()) for text in texts) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    lab.model.on_forward = forward
    assert lab.run() == Outcome.DRAINED
    lab.expect_all_good()
    with lab.leased.database.read() as session:
        safe = session.get(SafeBudget, ("fill-mask|scripted|auto", "cpu"))
    assert safe is not None
    assert safe.max_tokens <= 12
    too_large = [batch for batch in lab.model.batches if len(batch) * max(len(text.split()) for text in batch) > 12]
    assert len(too_large) <= 2, "it is not tried again at a size that did not fit"

    folder = lab.leased.input.parent / "again"
    folder.mkdir()
    leases.release(lab.leased.database, lab.lease.lease_id, "drained")
    again = Lab(LeasedJob(lab.leased.database, lab.leased.settings, folder, RECORDS, batching=BATCHING))
    assert again.run() == Outcome.DRAINED
    again.expect_all_good()
    assert all(len(batch) * max(len(text.split()) for text in batch) <= 12 for batch in again.model.batches)


def test_a_row_too_large_by_itself_is_a_row_error_and_keeps_the_budget(lab: Lab) -> None:
    """One giant row must not make all others slow, nor fail the job."""
    lab.model.on_forward = refusing(13, lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert lab.run() == Outcome.DRAINED
    lab.expect_all_but({13: "out_of_memory"})
    with lab.leased.database.read() as session:
        assert session.get(SafeBudget, ("fill-mask|scripted|auto", "cpu")) is None


def test_an_out_of_memory_while_decoding_is_survived(lab: Lab) -> None:
    """Copying a batch back needs memory as well."""
    lab.model.on_decode = raising_once(MemoryError())
    assert lab.run() == Outcome.DRAINED
    lab.expect_all_good()


def test_warm_models_are_dropped_before_a_batch_is_made_smaller(lab: Lab) -> None:
    """A model that merely stays warm must not slow the one at work."""
    warm = LeasedJob.spec_of("idle")
    lab.models = ModelCache(2, CPU, load=lambda *_, **__: lab.model)
    lab.models.get(ModelRef.of(warm), warm.task_parameters)

    def forward(texts: list[str]) -> None:
        if len(lab.models.keys()) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    lab.model.on_forward = forward
    assert lab.run() == Outcome.DRAINED
    lab.expect_all_good()
    assert lab.models.keys() == ["fill-mask|scripted|auto"]
    with lab.leased.database.read() as session:
        assert session.get(SafeBudget, ("fill-mask|scripted|auto", "cpu")) is None


# -- faults of the machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["on_forward", "on_decode"])
def test_a_poisoned_device_needs_a_new_runner_and_loses_nothing(lab: Lab, step: str) -> None:
    """After a device-side assert every call fails: the rows go to another process, not into row errors."""
    setattr(lab.model, step, refusing(20, lambda: RuntimeError("CUDA error: device-side assert triggered")))
    with pytest.raises(MachineError, match="new process"):
        lab.run()
    assert lab.beats[-1] == 16, "the chunk that is to blame"
    states = lab.leased.states()
    assert states[2:] == ["pending"] * 8
    assert lab.leased.job().num_failed == 0


def test_a_users_error_midway_fails_the_job_and_commits_what_was_done(lab: Lab) -> None:
    """An input that is changed while it is read fails the job with one sentence."""
    second_chunk = threading.Event()

    def encode(rows: Sequence[Any]) -> None:
        if rows[0].row_index == 8:
            second_chunk.set()
            raise InvalidInput("the input has changed")

    lab.model.on_encode = encode
    with pytest.raises(UserError, match="has changed"):
        lab.run()
    assert second_chunk.is_set()
    assert "leased" not in lab.leased.states()


def test_a_lost_lease_records_nothing_more(lab: Lab) -> None:
    """A zombie's results never reach the database."""

    def forward(texts: list[str]) -> None:
        if lab.beats[-1] == 0 and len(lab.model.batches) == 1:
            leases.crash(
                lab.leased.database, lab.lease.lease_id, MachineError(), computing=None, retries=lab.leased.settings
            )

    lab.model.on_forward = forward
    with pytest.raises(LostLease):
        lab.run()
    assert lab.leased.results() == []
    assert lab.leased.job().num_done == 0


@pytest.fixture
def flaky_commit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[int]]]:
    """Make the database go away at a commit: `before` it is done, or `after`, so that only the answer is lost."""
    real = chunks.commit
    calls: list[int] = []

    def install(when: str) -> list[int]:
        def commit(
            db: Database, lease_id: str, computed: Sequence[ChunkResults], record: Callable[[Session], None]
        ) -> None:
            calls.append(len(computed))
            fails = len(calls) == 1 or when == "always"
            if fails and when != "after":
                raise ServiceUnavailable("the database cannot be used: connection refused")
            real(db, lease_id, computed, record)
            if fails:
                raise ServiceUnavailable("the database cannot be used: server closed the connection unexpectedly")

        monkeypatch.setattr(writer.chunks, "commit", commit)
        return calls

    yield install
    monkeypatch.undo()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_whose_answer_is_lost_is_recorded_once(
    lab: Lab, when: str, flaky_commit: Callable[[str], list[int]]
) -> None:
    """After a lost answer the chunks are read back by token: neither lost nor recorded twice."""
    calls = flaky_commit(when)
    assert lab.run() == Outcome.DRAINED
    lab.expect_all_good()
    assert lab.leased.job().num_done == 80
    assert calls


def test_a_database_that_stays_away_ends_the_lease(
    sqlite_database: Database, settings: Settings, tmp_path: Path, flaky_commit: Callable[[str], list[int]]
) -> None:
    """A writer that cannot write must stop the device, which would otherwise wait on a full queue for ever."""
    impatient = settings.model_copy(update={"lease_seconds": 0.2})
    lab = Lab(LeasedJob(sqlite_database, impatient, tmp_path, RECORDS * 4, batching=BATCHING))
    flaky_commit("always")
    with pytest.raises(ServiceUnavailable):
        lab.run()
    assert lab.leased.results() == []
    assert set(lab.leased.states()) == {"pending"}


# -- two slots ---------------------------------------------------------------------------------------------------


def test_two_slots_share_one_job_and_every_row_is_recorded_once(lab: Lab) -> None:
    """Work stealing: both take chunks until none is left."""
    other = Lab(lab.leased, "slot-1")
    both = threading.Barrier(2, timeout=300)
    for one in (lab, other):
        first = threading.Event()

        def forward(texts: list[str], first: threading.Event = first) -> None:
            if not first.is_set():
                first.set()
                both.wait()  # both have a chunk before either goes on

        one.model.on_forward = forward
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda one=one: outcomes.append(one.run())) for one in (lab, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert outcomes == [Outcome.DRAINED, Outcome.DRAINED]
    lab.expect_all_good()
    assert lab.model.batches
    assert other.model.batches
    assert str(lab.leased.job().state) == "finalizing"


# -- a real model ------------------------------------------------------------------------------------------------


def test_a_real_model_gives_the_pipelines_own_results(database: Database, settings: Settings, tmp_path: Path) -> None:
    """From a file, through a real tokenizer and a real BERT, into the database, and equal to transformers' pipeline."""
    folder = tiny.tiny_classifier(tmp_path / "model")
    records = [{"id": f"r{number}", "text": " ".join(tiny.SENTENCES[: number % 5 + 1])} for number in range(50)]
    leased = LeasedJob(
        database, settings, tmp_path, records, chunk_rows=16, task="text-classification", model=str(folder)
    )
    lab = Lab(leased)
    lab.models = ModelCache(1, CPU, load=partial(load_task_model, rules=lab.leased.settings))
    assert lab.run() == Outcome.DRAINED
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
    """A run that was disturbed gives what an undisturbed one gives: here two runs, one of them on two slots."""
    folder = tiny.tiny_encoder(tmp_path / "model")
    records = [{"id": f"r{number}", "text": " ".join(tiny.SENTENCES[: number % 7 + 1])} for number in range(60)]
    outputs = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        leased = LeasedJob(
            sqlite_database, settings, tmp_path / str(number), records, task="embeddings", model=str(folder)
        )
        labs = [Lab(leased, f"slot-{number}-{other}") for other in range(number + 1)]
        threads = [threading.Thread(target=lab.run) for lab in labs]
        for lab in labs:
            lab.models = ModelCache(1, CPU, load=partial(load_task_model, rules=lab.leased.settings))
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
    lab = Lab(leased)
    lab.models = ModelCache(1, CPU, load=partial(load_task_model, rules=lab.leased.settings))
    with pytest.raises(UserError):
        lab.run()
    assert set(leased.states()) == {"pending"}
