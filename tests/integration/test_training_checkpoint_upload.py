"""Checkpoints on their way into a store that has no room, that refuses writes, or that dead writers left halves in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config.settings import Settings
from jobs.data.drafts import StoredObject
from jobs.data.store import Store
from jobs.data.store_keys import checkpoint_prefix, job_prefix
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Job
from jobs.errors import NotKept, ServiceUnavailable, StoreUnwritable
from jobs.ledger import attempts, planning, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.attempts import KeepRule, NewCheckpoint
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.leasing.leases import WorkingLease
from jobs.specs.inference import TrainingSpec, parse_spec
from worker.training.attempt.checkpoint_upload import CheckpointUploader, fetch_newest, prepare_store, put_folder
from worker.training.reports import Saved
from worker.wire.pulse import Pulse

SPEC = parse_spec({"kind": "training", "task": "text-classification", "model": "m", "data": {"train": "rows.jsonl"}})


class FullStore(Store):
    """A store whose disk is full after a number of objects."""

    def __init__(self, folder: Path, room: int) -> None:
        super().__init__(str(folder))
        self.room = room

    def _publish(self, aside: Path, location: str) -> None:
        if not self.room:
            raise OSError(28, "No space left on device")
        self.room -= 1
        super()._publish(aside, location)


@pytest.fixture
def hold(sqlite_database: Database, settings: Settings) -> Callable[[], WorkingLease]:
    """Makes an active lease of one training, a further attempt each time."""
    slots.register(sqlite_database, [slots.SlotInfo("s0", "host", "cpu", None, "CPU", 0, 1)])
    slots.enter(sqlite_database, "s0", "s0-1", settings)
    job = job_ledger.submit(sqlite_database, SPEC)
    planning.enqueue(sqlite_database, job.id)

    def hold() -> WorkingLease:
        (lease_id,) = grants.grant(sqlite_database, Grant(job.id, ("s0",)), lease_seconds=600.0)
        lease = leases.activate(sqlite_database, lease_id, "s0-1", lease_seconds=600.0)
        assert lease is not None
        attempts.begin(sqlite_database, lease_id, resumed_step=0)
        return lease

    return hold


def saved(folder: Path, step: int) -> Saved:
    """A checkpoint of three files on local disk."""
    path = folder / f"checkpoint-{step}"
    (path / "best").mkdir(parents=True)
    for name in ("best/weights", "optimizer", "weights"):
        (path / name).write_bytes(b"x" * 100)
    return Saved(step, str(path))


def keep(lease: WorkingLease, store: Store, database: Database, checkpoint: Saved) -> None:
    assert isinstance(SPEC, TrainingSpec)
    uploader = CheckpointUploader(
        lease, SPEC, database=database, store=store, pulse=Pulse(lambda _: None, beat_seconds=60.0)
    )
    try:
        uploader.put(checkpoint)
        uploader.finish()
    finally:
        uploader.close()


def test_nothing_is_left_of_a_checkpoint_that_finds_no_room(
    tmp_path: Path, sqlite_database: Database, hold: Callable[[], WorkingLease]
) -> None:
    lease, store = hold(), FullStore(tmp_path / "store", room=5)
    keep(lease, store, sqlite_database, saved(tmp_path, 5))
    kept = list(store.list(job_prefix(lease.job_id)))
    assert len(kept) == 3
    with pytest.raises(NotKept, match=r"checkpoint of step 10 could not be stored.*No space left on device"):
        keep(lease, store, sqlite_database, saved(tmp_path, 10))
    assert list(store.list(job_prefix(lease.job_id))) == kept
    with sqlite_database.read() as session:
        assert [one.step for one in attempts.checkpoints(session, lease.job_id)] == [5]


class GatedStore(Store):
    """A store that publishes nothing until its gate is opened."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.gate = threading.Event()

    def _publish(self, aside: Path, location: str) -> None:
        assert self.gate.wait(timeout=300)
        super()._publish(aside, location)


def test_a_training_waits_for_a_store_that_is_slower(
    tmp_path: Path, sqlite_database: Database, hold: Callable[[], WorkingLease]
) -> None:
    assert isinstance(SPEC, TrainingSpec)
    lease, store = hold(), GatedStore(tmp_path / "store")
    uploader = CheckpointUploader(
        lease, SPEC, database=sqlite_database, store=store, pulse=Pulse(lambda _: None, beat_seconds=60.0)
    )
    first, *others = (saved(tmp_path, step) for step in (5, 10, 15))

    def put_others() -> bool:
        for one in others:
            uploader.put(one)
        return Path(first.folder).exists()

    with ThreadPoolExecutor(1) as pool:
        uploader.put(first)
        is_first_left = pool.submit(put_others)
        wait([is_first_left], timeout=0.5)  # enough for a `put` that does not wait
        store.gate.set()
        assert not is_first_left.result(), "only one checkpoint waits while another is uploaded"
    uploader.finish()
    uploader.close()


def test_nothing_waits_for_an_uploader_that_has_failed(
    tmp_path: Path, sqlite_database: Database, hold: Callable[[], WorkingLease]
) -> None:
    assert isinstance(SPEC, TrainingSpec)
    uploader = CheckpointUploader(
        hold(),
        SPEC,
        database=sqlite_database,
        store=FullStore(tmp_path / "store", room=0),
        pulse=Pulse(lambda _: None, beat_seconds=60.0),
    )

    def put_many() -> None:
        for step in range(1, 100):
            uploader.put(saved(tmp_path, step))

    with pytest.raises(NotKept, match="No space left on device"):
        put_many()
    with pytest.raises(NotKept):
        uploader.finish()
    uploader.close()


def test_a_retry_of_a_retry_resumes_from_the_first_jobs_checkpoint(
    tmp_path: Path, sqlite_database: Database, hold: Callable[[], WorkingLease]
) -> None:
    store, first = Store(str(tmp_path / "store")), hold()
    keep(first, store, sqlite_database, saved(tmp_path, 5))
    job_id = first.job_id
    for _ in range(2):
        with sqlite_database.write() as tx:
            job = tx.get_one(Job, job_id)
            job.state, job.ended_at = JobState.CANCELLED, tx.time()
        job_id = job_ledger.retry(sqlite_database, job_id).id
    last = replace(first, job_id=job_id)
    resumed = fetch_newest(last, tmp_path / "resumed", database=sqlite_database, store=store)
    assert resumed is not None
    assert (resumed.step, resumed.is_own) == (5, False)


def test_what_a_training_made_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    store, made = FullStore(tmp_path / "store", room=2), saved(tmp_path, 1)
    with pytest.raises(NotKept, match="what the training made could not be stored"):
        put_folder(store, "jobs/job_1/artifacts-lease_1/", Path(made.folder), what="what the training made")
    assert list(store.list()) == []


def test_an_attempt_deletes_the_halves_that_dead_ones_left(
    tmp_path: Path, sqlite_database: Database, hold: Callable[[], WorkingLease]
) -> None:
    store, first = Store(str(tmp_path / "store")), hold()
    keep(first, store, sqlite_database, saved(tmp_path, 5))
    kept = list(store.list())
    store.put(f"{checkpoint_prefix(first.job_id, 10, first.lease_id)}weights", [b"half"])
    store.put(f"{job_prefix(first.job_id)}artifacts-{first.lease_id}/model/weights", [b"half"])
    store.put(f"{job_prefix('job_other')}checkpoints/weights", [b"another's"])
    leases.release(sqlite_database, first.lease_id, "stopped")
    prepare_store(hold(), database=sqlite_database, store=store)
    assert list(store.list()) == sorted([*kept, f"{job_prefix('job_other')}checkpoints/weights"])


def test_no_attempt_computes_for_a_store_that_refuses_writes(
    tmp_path: Path, sqlite_database: Database, hold: Callable[[], WorkingLease]
) -> None:
    lease, store = hold(), FullStore(tmp_path / "store", room=0)
    with pytest.raises(StoreUnwritable, match=r"checkpoints cannot be stored.*No space left on device"):
        prepare_store(lease, database=sqlite_database, store=store)
    store.room = 1
    prepare_store(lease, database=sqlite_database, store=store)
    assert list(store.list()) == []


def test_no_attempt_computes_where_its_checkpoint_does_not_fit(
    tmp_path: Path, sqlite_database: Database, hold: Callable[[], WorkingLease]
) -> None:
    lease, store = hold(), Store(str(tmp_path / "store"))
    prefix = checkpoint_prefix(lease.job_id, 5, lease.lease_id)
    large = NewCheckpoint(5, prefix, [StoredObject(f"{prefix}weights", 2**60, "ab")])
    attempts.keep_checkpoint(sqlite_database, lease.lease_id, large, KeepRule(1))
    with pytest.raises(StoreUnwritable, match=f"bytes left, but {2**60} are needed"):
        prepare_store(lease, database=sqlite_database, store=store)


def test_a_bucket_is_tried_with_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Store("memory://writable")
    bucket.check_writable("jobs/job_1/checkpoints/lease_1", 2**60)
    assert list(bucket.list()) == []

    def refuse(*_: object) -> None:
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(bucket._fs, "put_file", refuse)
    with pytest.raises(ServiceUnavailable, match="AccessDenied"):
        bucket.check_writable("jobs/job_1/checkpoints/lease_1", 0)
