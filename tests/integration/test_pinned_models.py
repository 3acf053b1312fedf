"""One job, one model: real runners' caches and the real work on a lease, over a folder that changes in mid job."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from sqlalchemy import update
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import StopReason
from jobs.db.tables import Job
from jobs.errors import InvalidModel, LostLease
from jobs.ledger.leasing import leases
from jobs.ledger.leasing.leases import WorkingLease
from tests.support import tiny
from tests.support.leased_job import LeasedJob
from worker.inference.lease_run import run_lease
from worker.inference.tasks import load_task_model
from worker.models.cache import ModelCache
from worker.models.pinned import pinned_model
from worker.stop import Outcome, Stop
from worker.wire.pulse import Activity, Beat, Pulse

RECORDS = [{"id": f"r{number}", "text": f"a film of {number} minutes"} for number in range(16)]
"""Two chunks."""


def run(
    job: LeasedJob, lease: WorkingLease, models: ModelCache, *, on_forward: Callable[[Stop], None] = lambda _: None
) -> Outcome:
    """Work on a lease as a runner does."""
    stop = Stop()

    def hear(beat: Beat) -> None:
        if beat.activity is Activity.FORWARD:
            on_forward(stop)

    return run_lease(
        lease,
        job.spec,
        database=job.database,
        store=job.store,
        rules=job.settings,
        lease_times=job.settings,
        chunk_seconds=job.settings.chunk_seconds,
        encode_threads=2,
        num_threads=2,
        models=models,
        stop=stop,
        pulse=Pulse(hear),
    )


def new_cache(settings: Settings) -> ModelCache:
    """The models of a runner that has just started: none."""
    return ModelCache(1, torch.device("cpu"), load=partial(load_task_model, rules=settings))


def test_weights_replaced_in_mid_job_are_refused_by_every_runner(
    sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    folder = tiny.tiny_classifier(tmp_path / "model", seed=0)
    job = LeasedJob(sqlite_database, settings, tmp_path, RECORDS, task="text-classification", model=str(folder))
    warm = new_cache(settings)
    first = job.lease()
    assert run(job, first, warm, on_forward=lambda stop: stop.request(StopReason.YIELD)) == Outcome.STOPPED
    assert job.job().num_done == 8
    leases.release(sqlite_database, first.lease_id, "stopped")
    other = tiny.tiny_classifier(tmp_path / "other", seed=1) / "model.safetensors"
    before = (folder / "model.safetensors").stat()
    assert other.stat().st_size == before.st_size
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and `rsync -a` leave it
    other.replace(folder / "model.safetensors")
    second = job.lease()
    assert second.pins.model is not None
    for models in (warm, new_cache(settings)):
        with pytest.raises(InvalidModel) as caught:
            run(job, second, models)
        assert caught.value.message == (f"model '{folder}': model.safetensors changed after the job was submitted")
    assert job.job().num_done == 8, "nothing was computed with the new ones"


def test_a_folder_replaced_while_it_is_loaded_is_refused(
    sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    folder = tiny.tiny_classifier(tmp_path / "model", seed=0)
    job = LeasedJob(sqlite_database, settings, tmp_path, RECORDS, task="text-classification", model=str(folder))
    real = new_cache(settings)._load

    def load_late(*arguments: object, **options: object) -> object:
        model = real(*arguments, **options)
        (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
        return model

    with pytest.raises(InvalidModel, match=r"config\.json changed after the job was submitted"):
        run(job, job.lease(), ModelCache(1, torch.device("cpu"), load=load_late))  # type: ignore[arg-type]
    assert job.job().num_done == 0


def test_a_folder_that_is_gone_is_not_taken_for_a_hub_id(
    sqlite_database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.tiny_classifier(tmp_path / "model")
    job = LeasedJob(sqlite_database, settings, tmp_path, RECORDS, task="text-classification", model="model")
    lease = job.lease()
    assert pinned_model("model", lease, database=sqlite_database, rules=settings) == "model"
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(InvalidModel, match=r"^model 'model': was removed after the job was submitted$"):
        pinned_model("model", lease, database=sqlite_database, rules=settings)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two commits of one model, of which `main` is the first."""
    repository = tmp_path / "hub" / "models--org--tiny"
    for commit in ("a" * 40, "b" * 40):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text(f'{{"of": "{commit}"}}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def test_all_runners_of_a_job_use_one_commit_of_a_hub_id(
    hub: Path, database: Database, settings: Settings, tmp_path: Path
) -> None:
    job = LeasedJob(database, settings, tmp_path, RECORDS, model="org/tiny")
    with database.write() as session:
        session.execute(update(Job).where(col(Job.id) == job.job_id).values(pins={}))
    early, late = job.lease("slot-0"), job.lease("slot-1")
    assert pinned_model("org/tiny", early, database=database, rules=settings) == f"org/tiny@{'a' * 40}"
    (hub / "refs" / "main").write_text("b" * 40)
    assert pinned_model("org/tiny", late, database=database, rules=settings) == f"org/tiny@{'a' * 40}"
    heir = job.lease("slot-2")
    shutil.rmtree(hub / "refs")  # a pinned revision needs no name any more
    assert pinned_model("org/tiny", heir, database=database, rules=settings) == f"org/tiny@{'a' * 40}"


def test_a_lost_lease_pins_no_commit(hub: Path, sqlite_database: Database, settings: Settings, tmp_path: Path) -> None:
    job = LeasedJob(sqlite_database, settings, tmp_path, RECORDS, model="org/tiny")
    with sqlite_database.write() as session:
        session.execute(update(Job).where(col(Job.id) == job.job_id).values(pins={}))
    lease = job.lease()
    leases.release(sqlite_database, lease.lease_id, "stopped")
    with pytest.raises(LostLease):
        pinned_model("org/tiny", lease, database=sqlite_database, rules=settings)
    assert job.job().pins == {}
