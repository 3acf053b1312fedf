"""Which rows of a model may share a batch: found once, remembered, and reported to the job that it slows down."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select
from transformers import FNetForMaskedLM, pipeline

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.tables import PaddingVerdict
from jobs.ledger import jobs as job_ledger
from jobs.ledger.leasing import leases
from jobs.ledger.records import history, notices
from jobs.specs.inference import parse_spec
from scheduler.cli import main
from tests.support.architectures import save_small, small_config
from tests.support.leased_job import LeasedJob
from tests.support.live_api import LiveApi, spec_document
from tests.support.task_kit import CPU, load, same
from tests.support.tiny import SENTENCES, tiny_masked_lm, wordpiece_tokenizer
from worker.inference.lease_run import run_lease
from worker.inference.padding_verdicts import PadsRows, fingerprint_of
from worker.inference.tasks import load_task_model
from worker.inference.tasks.fill_mask import FillMask
from worker.models.cache import ModelCache
from worker.models.texts.padding import NOTICES, Padding
from worker.stop import Outcome, Stop
from worker.wire.pulse import Pulse

RECORDS = [{"id": f"r{number}", "text": f"{text} [MASK] {text[: 5 * number]}"} for number, text in enumerate(SENTENCES)]
MESSAGE = NOTICES[Padding.EQUAL_LENGTHS]


@pytest.fixture(scope="module")
def fnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model without an attention mask: each token reaches every other, padding too."""
    folder = tmp_path_factory.mktemp("fnet")
    tokenizer = wordpiece_tokenizer(160)
    save_small(folder, FNetForMaskedLM, small_config("fnet", tokenizer), tokenizer)
    return folder


@pytest.fixture
def run(sqlite_database: Database, settings: Settings, tmp_path: Path) -> Callable[[Path], LeasedJob]:
    """Runs a job of `RECORDS` with a model, in a runner that has nothing loaded."""
    allowed = settings.model_copy(update={"input_roots": ["/"]})

    def run_job(model: Path) -> LeasedJob:
        job = LeasedJob(sqlite_database, allowed, tmp_path, RECORDS, chunk_rows=4, model=str(model))
        cache = ModelCache(1, CPU, load=partial(load_task_model, rules=allowed))
        # Two leases of one job: the second has nothing left to compute, and reports the same as the first.
        held = [job.lease("slot-0"), job.lease("slot-1")]
        for lease in held:
            ended = run_lease(
                lease,
                job.spec,
                database=job.database,
                store=job.store,
                rules=allowed,
                lease_times=allowed,
                chunk_seconds=allowed.chunk_seconds,
                encode_threads=2,
                num_threads=2,
                models=cache,
                stop=Stop(),
                pulse=Pulse(lambda _: None),
            )
            assert ended == Outcome.DRAINED
        for lease in held:
            leases.release(job.database, lease.lease_id, "drained")
        return job

    return run_job


def _told(job: LeasedJob) -> tuple[list[str], list[str]]:
    with job.database.read() as session:
        given = [notice.message for notice in notices.of_jobs(session, [job.job_id]).get(job.job_id, [])]
        noted = [event.data["message"] for event in history.events(session, job.job_id) if event.name == "job.notice"]
    return given, noted


def test_a_model_that_sees_padding_computes_each_row_alone(fnet: Path, run: Callable[[Path], LeasedJob]) -> None:
    job = run(fnet)
    reference = pipeline("fill-mask", model=str(fnet), device="cpu", dtype=torch.float32)
    results = job.results()
    assert all(same(one.output, reference(record["text"])) for one, record in zip(results, RECORDS, strict=True))
    assert _told(job) == ([MESSAGE], [MESSAGE])


def test_a_model_that_bears_padding_is_not_talked_about(tmp_path: Path, run: Callable[[Path], LeasedJob]) -> None:
    assert _told(run(tiny_masked_lm(tmp_path / "bert"))) == ([], [])


def test_another_runner_does_not_try_again_unless_the_weights_changed(
    fnet: Path, run: Callable[[Path], LeasedJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[FillMask] = []
    probe = FillMask.probe_padding
    monkeypatch.setattr(FillMask, "probe_padding", lambda self, **options: tried.append(self) or probe(self, **options))
    run(fnet)
    assert len(tried) == 1
    job = run(fnet)
    assert len(tried) == 1
    assert _told(job) == ([MESSAGE], [MESSAGE])
    changed = FNetForMaskedLM.from_pretrained(fnet)
    torch.nn.init.normal_(changed.cls.predictions.bias)
    changed.save_pretrained(tmp_path / "changed")
    wordpiece_tokenizer(160).save_pretrained(tmp_path / "changed")
    run(tmp_path / "changed")
    assert len(tried) == 2


def test_the_fingerprint_knows_dtype_weights_and_the_side_of_padding(tmp_path: Path) -> None:
    folder = tiny_masked_lm(tmp_path)
    one, same_one, other_dtype = (load("fill-mask", folder, dtype=dtype) for dtype in _DTYPES)
    assert all(isinstance(each, PadsRows) for each in (one, same_one, other_dtype))
    first = fingerprint_of(one.model, one.tokens)
    assert fingerprint_of(same_one.model, same_one.tokens) == first
    assert fingerprint_of(other_dtype.model, other_dtype.tokens) != first
    same_one.tokens.tokenizer.padding_side = "left"
    assert fingerprint_of(same_one.model, same_one.tokens) != first
    next(one.model.parameters())[0].add_(1)
    assert fingerprint_of(one.model, one.tokens) != first


_DTYPES = (torch.float32, torch.float32, torch.bfloat16)


def test_too_little_memory_for_trying_is_not_remembered(
    fnet: Path, run: Callable[[Path], LeasedJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_: Any, **__: Any) -> Padding:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(FillMask, "probe_padding", no_memory)
    job = run(fnet)
    assert job.job().num_done == len(RECORDS)
    with job.database.read() as session:
        assert session.scalars(select(PaddingVerdict)).all() == []


def test_status_and_the_api_show_a_notice_once(
    api: LiveApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job_id = job_ledger.submit(api.database, parse_spec(spec_document(tmp_path / "rows.jsonl"))).id
    assert api.client.job(job_id)["notices"] == []
    assert [notices.add(api.database, job_id, notices.PADDING, MESSAGE) for _ in range(2)] == [True, False]
    (notice,) = api.client.job(job_id)["notices"]
    assert (notice["code"], notice["message"]) == ("padding", MESSAGE)
    monkeypatch.setenv("STOKER_URL", api.url)
    monkeypatch.setenv("STOKER_API_KEY", api.key)
    assert main(["status", job_id]) == 0
    assert MESSAGE in " ".join(capfd.readouterr().out.split())
