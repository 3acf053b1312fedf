"""Runs one lease of a training job: starts its processes from the newest good checkpoint and records their reports.

The processes compute and have no access to the database. Their reports are recorded here, in order: metrics at once,
checkpoints in a separate thread, since copying a checkpoint must not delay the next steps. A checkpoint belongs to the
job only when all its files are in the store and the lease is still active.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs.access.model_check import check_folder, readable
from jobs.access.paths import check_code_path
from jobs.access.pins import check_pin
from jobs.config.access_rules import AccessRules
from jobs.config.activities import Activity
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import StopReason
from jobs.errors import DeviceOutOfMemory, InvalidSpec, MachineError, ModelTooLarge, StokerError
from jobs.ledger import attempts
from jobs.ledger.leasing.gangs import Rank
from jobs.ledger.leasing.leases import WorkingLease
from jobs.specs.inference import TrainingSpec
from jobs.specs.training import recipe_name
from worker.models.load import fetch_model
from worker.models.pinned import pinned_model
from worker.models.trained import fetch_job_model
from worker.stop import Outcome, Stop
from worker.training.attempt.artifacts import record_artifacts
from worker.training.attempt.checkpoint_upload import CheckpointUploader, fetch_newest, prepare_store
from worker.training.attempt.gang_start import wait_for_gang
from worker.training.attempt.ranks import RankProcesses
from worker.training.loops.schedule import halved
from worker.training.plan import Plan
from worker.training.reports import Begun, Broken, Doing, Finished, Progress, Saved, Stopped
from worker.wire.protocol import Failed, error_from
from worker.wire.pulse import Beat, Pulse

logger = logging.getLogger(__name__)

_MOST_HALVINGS = 10
_RANKS = "ranks"
"""Name of the stage under which the leader's progress is reported."""


def run_training(
    lease: WorkingLease,
    spec: TrainingSpec,
    *,
    database: Database,
    store: Store,
    rules: AccessRules,
    device: str,
    num_threads: int,
    stop: Stop,
    pulse: Pulse,
) -> Outcome:
    """Train until the training is done or a stop is requested. No process of the training outlives this call.

    Args:
        lease: An active lease of a training job.
        spec: The spec of that job.
        database: The database with the job.
        store: The store for checkpoints and artifacts.
        rules: What jobs may read and run on this host, and where its data is.
        device: `cuda` or `cpu`.
        num_threads: Number of CPU threads of each training process.
        stop: The stop request. `yield` and `shutdown` stop after the current step with a checkpoint, `cancel` without.
        pulse: Receives the progress of this process and of the training's.

    Raises:
        UserError: The job's model, data, arguments or module is invalid, or a loss is not a finite number.
        LostLease: The lease is no longer this slot's.
        MachineError: A process, the device or a service failed. The next attempt resumes from the newest checkpoint.
    """
    if stop.is_requested:
        return Outcome.STOPPED
    places = wait_for_gang(lease, database=database, stop=stop)
    if places is None:
        return Outcome.STOPPED
    pulse.at(Activity.START)
    model, processor = _find_folders(spec, lease, database=database, store=store, rules=rules)
    with _folder(rules, lease) as folder:
        prepare_store(lease, database=database, store=store)
        resumed = fetch_newest(lease, folder / "resume", database=database, store=store)
        if resumed is None or not resumed.is_own:  # otherwise the module is run as saved with the checkpoint
            check_module(spec, lease, rules)
        with database.read() as session:
            num_halvings = attempts.num_memory_failures(session, lease.job_id)
        attempts.begin(
            database, lease.lease_id, resumed_step=0 if resumed is None else resumed.step, num_halvings=num_halvings
        )
        plan = Plan(
            job_id=lease.job_id,
            spec=spec,
            folder=str(folder),
            device=device,
            num_threads=num_threads,
            model=model,
            processor=processor,
            resume=None if resumed is None else str(resumed.folder),
            goes_on=resumed is not None and resumed.is_own,
            cache=str(rules.training_path / "cache"),
            num_ranks=len(places),
            num_halvings=num_halvings,
        )
        pulse.at(None)
        pulse.record(Beat(_RANKS, Activity.START))
        uploader = CheckpointUploader(lease, spec, database=database, store=store, pulse=pulse)
        try:
            with RankProcesses(plan, _environment(places)) as ranks:
                return _follow(lease, ranks, uploader, database=database, store=store, stop=stop, pulse=pulse)
        except DeviceOutOfMemory as error:
            raise _out_of_memory(spec, num_halvings, error) from error
        finally:
            uploader.close()


def _follow(
    lease: WorkingLease,
    ranks: RankProcesses,
    uploader: CheckpointUploader,
    *,
    database: Database,
    store: Store,
    stop: Stop,
    pulse: Pulse,
) -> Outcome:
    """Record the reports of the ranks until they end."""
    total_steps = 0
    with stop.notifying(lambda: ranks.request_stop(stop)):
        for report in ranks.reports():
            uploader.check()
            match report:
                case Doing(activity, step):
                    pulse.record(Beat(_RANKS, activity, step=step))
                case Begun(step, total_steps):
                    logger.info("training from step %d of %d", step, total_steps)
                    is_pruned = attempts.advance(
                        database, lease.lease_id, step=step, total_steps=total_steps, points=()
                    )
                    if is_pruned:  # this was reported to an earlier attempt, which died before its end
                        stop.request(StopReason.FINISH)
                case Progress(step, points):
                    is_pruned = attempts.advance(
                        database, lease.lease_id, step=step, total_steps=total_steps, points=points
                    )
                    if is_pruned:
                        stop.request(StopReason.FINISH)
                case Saved():
                    if uploader.is_full:
                        pulse.record(Beat(_RANKS))  # while `put` waits for an upload, the ranks wait for it
                    uploader.put(report)
                case Stopped(step):
                    pulse.record(Beat(_RANKS))
                    uploader.finish()
                    logger.info("stopped at step %d", step)
                    return Outcome.STOPPED
                case Finished():
                    pulse.record(Beat(_RANKS))
                    uploader.finish()
                    pulse.at(Activity.SAVE)
                    record_artifacts(lease, report, database=database, store=store)
                    return Outcome.DRAINED
                case Broken(code, message, param, is_users):
                    pulse.record(Beat(_RANKS))
                    uploader.finish()
                    raise error_from(Failed(code, message, param, is_users, is_poisoned=False))
    raise AssertionError("the training process ended without a final report")


def _environment(places: Sequence[Rank]) -> dict[str, str] | None:
    """Return the environment of the ranks. Each rank sees the devices of all ranks, so that they can exchange data
    directly, and selects its own."""
    uuids = [place.device_uuid for place in places if place.device_uuid is not None]
    return None if len(places) == 1 or not uuids else {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(uuids)}


def _find_folders(
    spec: TrainingSpec, lease: WorkingLease, *, database: Database, store: Store, rules: AccessRules
) -> tuple[str | None, str | None]:
    """Return the folders of the spec's model and processor, each None if there is none. Hub ids are downloaded."""
    if isinstance(spec.model, str):
        fetch_job_model(spec.model, database=database, store=store, rules=rules)
        found = fetch_model(pinned_model(spec.model, lease, database=database, rules=rules), rules)
        check_folder(found.path, spec.task or "", name=spec.model, may_read=readable(spec.model, rules), is_start=True)
        return str(found.path), None
    if spec.model is None or spec.model.processor is None:
        return None, None
    processor, param = spec.model.processor, "model.processor"
    fetch_job_model(processor, database=database, store=store, rules=rules, param=param)
    pinned = pinned_model(processor, lease, database=database, rules=rules, part="processor", param=param)
    return None, str(fetch_model(pinned, rules).path)


def check_module(spec: TrainingSpec, lease: WorkingLease, rules: AccessRules) -> None:
    """Refuse a module whose file changed after the job was submitted.

    Raises:
        InvalidSpec: The file changed after the job was submitted.
    """
    if spec.module is not None and recipe_name(spec.module) is None:
        path = check_code_path(spec.module, rules, param="module")
        check_pin(lease.pins.module, path, name=spec.module, param="module", error=InvalidSpec, by_content=True)


def _out_of_memory(spec: TrainingSpec, num_halvings: int, error: DeviceOutOfMemory) -> StokerError:
    """Return the error for an out-of-memory: one that is retried if the micro-batch can and may be halved."""
    if spec.on_out_of_memory == "halve":
        micro_batch, _ = halved(spec.training_arguments, num_halvings)
        if micro_batch > 1 and num_halvings < _MOST_HALVINGS:
            return error
        return ModelTooLarge(
            f"{error.message}; the micro-batch is already {micro_batch}; use a smaller model or a larger device"
        )
    return ModelTooLarge(
        f"{error.message}; reduce arguments.per_device_train_batch_size, or set on_out_of_memory: halve"
    )


@contextmanager
def _folder(rules: AccessRules, lease: WorkingLease) -> Iterator[Path]:
    """Make an empty folder for this lease. Files that earlier leases of this slot left are deleted first."""
    slot_folder = rules.training_path / lease.slot_id
    shutil.rmtree(slot_folder, ignore_errors=True)
    folder = slot_folder / lease.lease_id
    try:
        folder.mkdir(parents=True)
        (rules.training_path / "cache").mkdir(exist_ok=True)
    except OSError as error:
        raise MachineError(f"the training's folder cannot be created: {error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(slot_folder, ignore_errors=True)
