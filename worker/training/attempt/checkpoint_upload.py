"""Checkpoints on their way into the store and back: hashed, copied beside the training, verified before use."""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from jobs.config.activities import Activity
from jobs.data.store import Store, StoredObject, checkpoint_prefix, job_prefix
from jobs.db.database import Database
from jobs.db.tables import Checkpoint
from jobs.errors import MachineError, NotFound, NotKept, ServiceUnavailable, StoreUnwritable
from jobs.ledger import attempts
from jobs.ledger import jobs as job_ledger
from jobs.ledger.attempts import KeepRule, NewCheckpoint
from jobs.ledger.leases import WorkingLease
from jobs.messages import reason
from jobs.specs.inference import TrainingSpec
from worker.training.reports import Saved
from worker.wire.pulse import Pulse

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resumed:
    """A checkpoint that was fetched and found whole."""

    step: int
    folder: Path
    is_own: bool
    """Whether the job made it, and not the one that it retries."""


class CheckpointUploader:
    """Takes checkpoints over, one after the other, in a thread of its own."""

    def __init__(
        self, lease: WorkingLease, spec: TrainingSpec, *, database: Database, store: Store, pulse: Pulse
    ) -> None:
        self._pulse = pulse
        self._lease, self._database, self._store = lease, database, store
        self._rule = KeepRule(spec.checkpoint.keep, spec.checkpoint.best, spec.checkpoint.best_mode)
        self._waiting: SimpleQueue[Saved | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def put(self, saved: Saved) -> None:
        """Take a checkpoint over.

        Raises:
            StokerError: an earlier one could not be kept.
        """
        self.check()
        self._waiting.put(saved)

    def check(self) -> None:
        """Raises StokerError where a checkpoint could not be kept: going on would be in vain."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until all are kept.

        Raises:
            StokerError: one could not be kept.
        """
        self._waiting.put(None)
        self._thread.join()
        self.check()

    def close(self) -> None:
        """Take nothing over any more; does nothing after `finish`."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            while (saved := self._waiting.get()) is not None and not self._closing.is_set():
                with self._pulse.doing(Activity.CHECKPOINT, step=saved.step):
                    self._keep(saved)
        except BaseException as error:  # noqa: BLE001 - a thread's edge: `put` and `finish` raise it
            self._error = error

    def _keep(self, saved: Saved) -> None:
        folder = Path(saved.folder)
        prefix = checkpoint_prefix(self._lease.job_id, saved.step, self._lease.lease_id)
        files = put_folder(self._store, prefix, folder, what=f"the checkpoint of step {saved.step}")
        new = NewCheckpoint(saved.step, prefix, files, saved.metric)
        for dropped in attempts.keep_checkpoint(self._database, self._lease.lease_id, new, self._rule):
            _delete(self._store, dropped)
        shutil.rmtree(folder)
        logger.info("kept the checkpoint of step %d: %d files", saved.step, len(files))


def put_folder(store: Store, prefix: str, folder: Path, *, what: str) -> list[StoredObject]:
    """Put all files of a folder into the store, or none.

    Args:
        prefix: what their keys begin with, before their relative paths.
        what: they are, for people.

    Raises:
        NotKept: the store does not take them; what it had taken is deleted again.
    """
    try:
        return [
            store.put_file(f"{prefix}{path.relative_to(folder).as_posix()}", path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
    except ServiceUnavailable as error:
        try:
            _delete(store, prefix)
        except ServiceUnavailable as further:  # the next attempt does it, or whoever deletes the job
            logger.warning("what was stored of %s cannot be deleted now: %s", what, further)
        raise NotKept(f"{what} could not be kept: {error.message}") from error


def prepare_store(lease: WorkingLease, *, database: Database, store: Store) -> None:
    """Delete what earlier attempts left half stored, and find out whether the store has room for a checkpoint.

    Raises:
        StoreUnwritable: it takes nothing, or has no room for one as large as the newest.
        ServiceUnavailable: the store or the database cannot be reached.
    """
    with database.read() as session:
        kept = [
            (one.prefix, sum(file["num_bytes"] for file in one.files))
            for one in attempts.checkpoints(session, lease.job_id)
        ]
    folder = job_prefix(lease.job_id)
    if lease.attempt > 1:
        _delete(store, f"{folder}checkpoints/", spared=tuple(prefix for prefix, _ in kept))
        _delete(store, f"{folder}artifacts-")
    try:
        store.check_writable(f"{folder}checkpoints/{lease.lease_id}", kept[0][1] if kept else 0)
    except ServiceUnavailable as error:
        raise StoreUnwritable(f"no checkpoint can be kept: {error.message}") from error


def _delete(store: Store, prefix: str, *, spared: tuple[str, ...] = ()) -> None:
    for key in list(store.list(prefix)):
        if not key.startswith(spared):
            store.delete(key)


def fetch_newest(lease: WorkingLease, folder: Path, *, database: Database, store: Store) -> Resumed | None:
    """Bring the newest checkpoint of a job that is whole; damaged ones are dropped, and said.

    A retry that has none of its own yet goes on from those of the job that it retries.

    Returns:
        None where there is none.

    Raises:
        LostLease: the lease is not active any more.
        ServiceUnavailable: the store cannot be reached.
        MachineError: there is no room for it on this machine.
    """
    with database.read() as session:
        found = attempts.checkpoints(session, lease.job_id)
        retried = job_ledger.get(session, lease.job_id).retry_of
        if not found and retried is not None:
            found = attempts.checkpoints(session, retried)
    for checkpoint in found:
        flaw = _fetch(checkpoint, folder, store)
        if flaw is None:
            return Resumed(checkpoint.step, folder, checkpoint.job_id == lease.job_id)
        logger.warning("the checkpoint of step %d cannot be used: %s", checkpoint.step, flaw)
        if checkpoint.job_id == lease.job_id:
            attempts.forget_checkpoint(database, lease.lease_id, checkpoint.step, flaw)
    return None


def _fetch(checkpoint: Checkpoint, folder: Path, store: Store) -> str | None:
    """Copy a checkpoint's files; what is wrong with them, or None."""
    shutil.rmtree(folder, ignore_errors=True)
    for file in checkpoint.files:
        try:
            digest = store.fetch(f"{checkpoint.prefix}{file['name']}", folder / file["name"])
        except NotFound:
            return f"{file['name']} is missing"
        except OSError as error:
            raise MachineError(
                f"the checkpoint of step {checkpoint.step} cannot be fetched: {reason(error)}"
            ) from error
        if digest != file["sha256"]:
            return f"{file['name']} is damaged"
    return None
