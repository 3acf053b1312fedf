"""A job uses the files at the time of its submission: changes before its planning are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, null, select, update
from sqlmodel import col

from jobs.access.pins import PinnedFiles, Pins
from jobs.db.states import JobState
from jobs.db.tables import Chunk, Job
from jobs.ledger import jobs as job_ledger
from scheduler.control.planning.planner import plan_job
from tests.support import tiny
from tests.support.live_api import LiveApi, fresh_api
from tests.support.rows import write_rows


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """A running API on whose machine modules may be run; nothing plans but the tests."""
    with fresh_api(tmp_path_factory.mktemp("api"), code_roots=[Path("/")]) as running:
        yield running


@dataclass(frozen=True)
class Submission:
    """A spec, and one of the files that its job computes with."""

    document: dict[str, Any]
    part: str
    file: Path
    refusal: str


def of_model(folder: Path) -> Submission:
    model = tiny.tiny_classifier(folder / "model")
    rows = folder / "rows.jsonl"
    rows.write_text('{"text": "a film"}\n')
    document = {"task": "text-classification", "model": str(model), "input": {"path": str(rows)}}
    file = model / "model.safetensors"
    return Submission(document, "model", file, f"model '{model}': {file.name} changed after the job was submitted")


def of_processor(folder: Path) -> Submission:
    processor = tiny.tiny_classifier(folder / "processor")
    rows = write_rows(folder / "rows.jsonl", [{"text": "a film", "label": label} for label in "ab"])
    model = {"architecture": "bert", "processor": str(processor)}
    document = {"kind": "training", "task": "text-classification", "model": model, "data": {"train": str(rows)}}
    refusal = f"model.processor '{processor}': tokenizer.json changed after the job was submitted"
    return Submission(document, "processor", processor / "tokenizer.json", refusal)


def of_module(folder: Path) -> Submission:
    module = folder / "net.py"
    module.write_text("def build(setup): ...  # 1")
    document = {"kind": "training", "trainer": "torch", "module": str(module)}
    return Submission(document, "module", module, f"module '{module}': net.py changed after the job was submitted")


SUBMISSIONS = {"model": of_model, "processor": of_processor, "module": of_module}


def submit(api: LiveApi, submission: Submission) -> str:
    """The id of the job."""
    answer = api.http.post("/v1/jobs", json=submission.document)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def plan(api: LiveApi, job_id: str) -> Job:
    """The job once it is planned."""
    plan_job(api.database, api.store, api.settings, job_id)
    return look(api, job_id)


def look(api: LiveApi, job_id: str) -> Job:
    """The job as it is now."""
    with api.database.read() as session:
        return job_ledger.get(session, job_id)


def pin_of(job: Job, part: str) -> PinnedFiles:
    """What a job's row holds of a part."""
    pin = getattr(Pins.parse(job.pins), part)
    assert isinstance(pin, PinnedFiles)
    return pin


def swap(file: Path, *, more: bytes = b"") -> None:
    """Another file of the same name and times, and unless there is more, of the same size."""
    before, aside = file.stat(), file.with_name("aside")
    content = file.read_bytes()
    aside.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) + more)
    os.utime(aside, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and `rsync -a` leave it
    aside.replace(file)


@pytest.mark.parametrize("kind", SUBMISSIONS)
def test_what_changes_before_planning_fails_the_job(kind: str, api: LiveApi, tmp_path: Path) -> None:
    submission = SUBMISSIONS[kind](tmp_path)
    job_id = submit(api, submission)
    swap(submission.file)
    job = plan(api, job_id)
    assert (job.state, job.error_message) == (JobState.FAILED, submission.refusal)
    with api.database.read() as session:
        assert session.scalar(select(func.count()).where(col(Chunk.job_id) == job_id)) == 0


def test_a_retry_uses_the_files_at_the_time_of_the_retry(api: LiveApi, tmp_path: Path) -> None:
    submission = of_module(tmp_path)
    job_id = submit(api, submission)
    swap(submission.file)
    assert plan(api, job_id).state == JobState.FAILED
    again = api.http.post(f"/v1/jobs/{job_id}/retry").json()["id"]
    assert pin_of(look(api, again), "module") != pin_of(look(api, job_id), "module")
    assert plan(api, again).state == JobState.QUEUED
    third = api.http.post("/v1/jobs", json=submission.document).json()["id"]
    api.http.post(f"/v1/jobs/{third}/cancel")
    fourth = api.http.post(f"/v1/jobs/{third}/retry").json()["id"]
    swap(submission.file)
    assert plan(api, fourth).error_message == submission.refusal


@pytest.mark.parametrize("kind", SUBMISSIONS)
def test_planning_adds_the_digests_of_the_stamped_files(kind: str, api: LiveApi, tmp_path: Path) -> None:
    submission = SUBMISSIONS[kind](tmp_path)
    job_id = submit(api, submission)
    stamped = pin_of(look(api, job_id), submission.part)
    assert submission.file.name in {file.name for file in stamped.files}
    assert {file.digest for file in stamped.files} == {None}
    job = plan(api, job_id)
    assert job.state == JobState.QUEUED, job.error_message
    planned = pin_of(job, submission.part)
    assert [(file.name, file.num_bytes, file.stamp) for file in planned.files] == [
        (file.name, file.num_bytes, file.stamp) for file in stamped.files
    ]
    assert None not in {file.digest for file in planned.files}


def test_a_change_while_the_digests_are_made_fails_the_job(
    api: LiveApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scheduler.control.planning import planner

    submission = of_model(tmp_path)
    job_id = submit(api, submission)
    real: Callable[..., Pins] = planner.pin_spec

    def pin_late(*arguments: Any) -> Pins:
        swap(submission.file)
        return real(*arguments)

    monkeypatch.setattr(planner, "pin_spec", pin_late)
    assert plan(api, job_id).error_message == submission.refusal


@pytest.mark.parametrize(("more", "state"), [(b"", JobState.QUEUED), (b"x", JobState.FAILED)])
def test_a_planner_of_another_host_goes_by_sizes(more: bytes, state: JobState, api: LiveApi, tmp_path: Path) -> None:
    """Its copy of the folder has inodes and times of its own; there are no digests yet to compare."""
    submission = of_module(tmp_path)
    job_id = submit(api, submission)
    document = json.dumps(look(api, job_id).pins)
    stamp = pin_of(look(api, job_id), "module").files[0].stamp
    with api.database.write() as session:
        elsewhere = json.loads(document.replace(stamp, "1+2.3@0000abcd"))
        session.execute(update(Job).where(col(Job.id) == job_id).values(pins=elsewhere))
    swap(submission.file, more=more)
    job = plan(api, job_id)
    assert job.state == state
    if state == JobState.QUEUED:
        (file,) = pin_of(job, "module").files
        assert file.digest is not None
        assert file.stamp != "1+2.3@0000abcd"


def test_a_job_of_an_earlier_release_is_pinned_when_it_is_planned(api: LiveApi, tmp_path: Path) -> None:
    submission = of_module(tmp_path)
    job_id = submit(api, submission)
    with api.database.write() as session:
        session.execute(update(Job).where(col(Job.id) == job_id).values(pins=null()))
    swap(submission.file)
    job = plan(api, job_id)
    assert job.state == JobState.QUEUED
    assert pin_of(job, "module").files[0].digest is not None
