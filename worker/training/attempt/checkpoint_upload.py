"""Copies checkpoints to the store while the training continues, and back, verified by their hashes, to resume."""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from jobs.config.activities import Activity
from jobs.data.drafts import StoredObject
from jobs.data.store import Store
from jobs.data.store_keys import checkpoint_prefix, job_prefix
from jobs.db.database import Database
from jobs.db.tables import Checkpoint, Job
from jobs.errors import MachineError, NotFound, NotKept, ServiceUnavailable, StoreUnwritable
from jobs.ledger import attempts
from jobs.ledger.attempts import KeepRule, NewCheckpoint
from jobs.ledger.leasing.leases import WorkingLease
from jobs.messages import reason
from jobs.specs.inference import TrainingSpec
from worker.training.reports import Saved
from worker.wire.pulse import Pulse

logger = logging.getLogger(__name__)

_MOST_WAITING = 1
"""Most checkpoints that wait while another one is uploaded. Then the training waits, too."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A checkpoint that was fetched from the store and verified."""

    step: int
    folder: Path
    is_own: bool
    """Whether this job wrote it; otherwise it is from the job that this job retries."""


class CheckpointUploader:
    """Copies checkpoints into the store, one after the other, in a separate thread."""

    def __init__(
        self, lease: WorkingLease, spec: TrainingSpec, *, database: Database, store: Store, pulse: Pulse
    ) -> None:
        self._pulse = pulse
        self._lease, self._database, self._store = lease, database, store
        self._rule = KeepRule(spec.checkpoint.keep, spec.checkpoint.best, spec.checkpoint.best_mode)
        self._waiting: Queue[Saved | None] = Queue(_MOST_WAITING)
        self._error: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._upload_all, name="checkpoints", daemon=True)
        self._thread.start()

    def put(self, saved: Saved) -> None:
        """Queue a checkpoint for upload. Waits while too many are queued, since each one takes space on the disk.

        Raises:
            StokerError: An earlier checkpoint could not be uploaded.
        """
        self.check()
        self._waiting.put(saved)

    @property
    def is_full(self) -> bool:
        """Whether `put` has to wait."""
        return self._waiting.full()

    def check(self) -> None:
        """Raise StokerError if a checkpoint could not be uploaded, since the training could not be resumed."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until all queued checkpoints are uploaded.

        Raises:
            StokerError: A checkpoint could not be uploaded.
        """
        self._waiting.put(None)
        self._thread.join()
        self.check()

    def close(self) -> None:
        """Stop after the upload that is running; does nothing after `finish`."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join()

    def _upload_all(self) -> None:
        try:
            while (saved := self._waiting.get()) is not None and not self._closing.is_set():
                with self._pulse.doing(Activity.CHECKPOINT, step=saved.step):
                    self._upload(saved)
        except BaseException as error:  # noqa: BLE001 - the thread ends here; `put` and `finish` raise it
            self._error = error
            while self._waiting.get() is not None:  # so that `put` does not wait for this thread
                pass

    def _upload(self, saved: Saved) -> None:
        folder = Path(saved.folder)
        prefix = checkpoint_prefix(self._lease.job_id, saved.step, self._lease.lease_id)
        files = put_folder(self._store, prefix, folder, what=f"the checkpoint of step {saved.step}")
        new = NewCheckpoint(saved.step, prefix, files, saved.metric)
        for dropped in attempts.keep_checkpoint(self._database, self._lease.lease_id, new, self._rule):
            _delete(self._store, dropped)
        shutil.rmtree(folder)
        logger.info("stored the checkpoint of step %d: %d files", saved.step, len(files))


def put_folder(store: Store, prefix: str, folder: Path, *, what: str) -> list[StoredObject]:
    """Copy all files of a folder into the store, or none.

    Args:
        store: The store to copy to.
        prefix: The start of the files' keys; their relative paths follow.
        folder: The folder with the files.
        what: What the files are, for error messages.

    Raises:
        NotKept: The store rejects a file; the files that were copied before are deleted again.
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
        except ServiceUnavailable as further:  # the next attempt deletes it, or the deletion of the job
            logger.warning("the stored part of %s cannot be deleted now: %s", what, further)
        raise NotKept(f"{what} could not be stored: {error.message}") from error


def prepare_store(lease: WorkingLease, *, database: Database, store: Store) -> None:
    """Delete incomplete uploads of earlier attempts, and check that the store has room for a checkpoint.

    Raises:
        StoreUnwritable: The store cannot be written, or has no room for a checkpoint as large as the newest.
        ServiceUnavailable: The store or the database cannot be reached.
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
        raise StoreUnwritable(f"checkpoints cannot be stored: {error.message}") from error


def _delete(store: Store, prefix: str, *, spared: tuple[str, ...] = ()) -> None:
    for key in list(store.list(prefix)):
        if not key.startswith(spared):
            store.delete(key)


def fetch_newest(lease: WorkingLease, folder: Path, *, database: Database, store: Store) -> Resumed | None:
    """Fetch the newest undamaged checkpoint of a job. Damaged checkpoints are logged and deleted.

    A retry without checkpoints of its own resumes from those of the job that it retries, which may itself be a retry.

    Returns:
        The checkpoint; None if there is none.

    Raises:
        LostLease: The lease is no longer active.
        ServiceUnavailable: The store cannot be reached.
        MachineError: The checkpoint cannot be written to this machine's disk.
    """
    with database.read() as session:
        found = attempts.checkpoints(session, lease.job_id)
        job = session.get(Job, lease.job_id)
        while not found and job is not None and job.retry_of is not None:  # the job that it retries may be a retry too
            found = attempts.checkpoints(session, job.retry_of)
            job = session.get(Job, job.retry_of)
    for checkpoint in found:
        flaw = _fetch(checkpoint, folder, store)
        if flaw is None:
            return Resumed(checkpoint.step, folder, checkpoint.job_id == lease.job_id)
        logger.warning("the checkpoint of step %d cannot be used: %s", checkpoint.step, flaw)
        if checkpoint.job_id == lease.job_id:
            attempts.forget_checkpoint(database, lease.lease_id, checkpoint.step, flaw)
    return None


def _fetch(checkpoint: Checkpoint, folder: Path, store: Store) -> str | None:
    """Copy a checkpoint's files to a folder. Returns what is wrong with them; None if nothing is."""
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
