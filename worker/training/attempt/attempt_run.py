"""One lease of a training job: its process is started from the newest good checkpoint, followed, and recorded.

The process computes and knows no database. What it reports is recorded here, in order: its steps' metrics at once, its
checkpoints by a thread of their own, since copying one must not hold the next steps up. A checkpoint is the job's only
once all its files are in the store and the lease still stands.
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
from jobs.config.activities import Activity
from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import DeviceOutOfMemory, InvalidSpec, MachineError, ModelTooLarge, StokerError
from jobs.ledger import attempts
from jobs.ledger.gangs import Place
from jobs.ledger.leases import WorkingLease
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
"""The stage under which the training's processes are reported, by their leader."""


def run_training(
    lease: WorkingLease,
    spec: TrainingSpec,
    *,
    database: Database,
    store: Store,
    settings: Settings,
    device: str,
    num_threads: int,
    stop: Stop,
    pulse: Pulse,
) -> Outcome:
    """Work on a training's lease until the training is done or a stop is asked for. Leaves no process behind.

    Args:
        lease: An active lease of a training job.
        spec: The spec of that job.
        device: `cuda` or `cpu`.
        num_threads: CPU threads of the process.
        stop: `yield` and `shutdown` end at the next step with a checkpoint, `cancel` without.
        pulse: is told what this process and the training's do.

    Raises:
        UserError: the job is at fault: its model, data, arguments or module, or a loss that is not a number.
        LostLease: the lease is somebody else's.
        MachineError: the process, the device or a service failed; the next attempt goes on from the newest checkpoint.
    """
    if stop.asked:
        return Outcome.STOPPED
    places = wait_for_gang(lease, database=database, stop=stop)
    if places is None:
        return Outcome.STOPPED
    pulse.at(Activity.START)
    model, processor = _find_folders(spec, lease, database=database, store=store, settings=settings)
    with _folder(settings, lease) as folder:
        prepare_store(lease, database=database, store=store)
        resumed = fetch_newest(lease, folder / "resume", database=database, store=store)
        if resumed is None or not resumed.is_own:  # else the module goes on as its checkpoint has it
            check_module(spec, lease, settings)
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
            cache=str(settings.training_path / "cache"),
            num_ranks=len(places),
            num_halvings=num_halvings,
        )
        pulse.at(None)
        pulse.say(Beat(_RANKS, Activity.START))
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
    """Record what the ranks report until they end."""
    total_steps = 0
    with stop.telling(lambda: ranks.ask(stop)):
        for report in ranks.reports():
            uploader.check()
            match report:
                case Doing(activity, step):
                    pulse.say(Beat(_RANKS, activity, step=step))
                case Begun(step, total_steps):
                    logger.info("training from step %d of %d", step, total_steps)
                    attempts.advance(database, lease.lease_id, step=step, total_steps=total_steps, points=())
                case Progress(step, points):
                    attempts.advance(database, lease.lease_id, step=step, total_steps=total_steps, points=points)
                case Saved():
                    uploader.put(report)
                case Stopped(step):
                    pulse.say(Beat(_RANKS))
                    uploader.finish()
                    logger.info("stopped at step %d", step)
                    return Outcome.STOPPED
                case Finished():
                    pulse.say(Beat(_RANKS))
                    uploader.finish()
                    pulse.at(Activity.SAVE)
                    record_artifacts(lease, report, database=database, store=store)
                    return Outcome.DRAINED
                case Broken(code, message, param, is_users):
                    pulse.say(Beat(_RANKS))
                    uploader.finish()
                    raise error_from(Failed(code, message, param, is_users, is_poisoned=False))
    raise AssertionError("the reports end with a last one")


def _environment(places: Sequence[Place]) -> dict[str, str] | None:
    """That of the ranks: each sees the devices of all, so that they can reach each other's, and picks its own."""
    uuids = [place.device_uuid for place in places if place.device_uuid is not None]
    return None if len(places) == 1 or not uuids else {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(uuids)}


def _find_folders(
    spec: TrainingSpec, lease: WorkingLease, *, database: Database, store: Store, settings: Settings
) -> tuple[str | None, str | None]:
    """The folders of a spec's model and processor, downloaded where they are hub ids; None for none."""
    if isinstance(spec.model, str):
        fetch_job_model(spec.model, database=database, store=store, settings=settings)
        found = fetch_model(pinned_model(spec.model, lease, database=database, settings=settings), settings)
        check_folder(
            found.path, spec.task or "", name=spec.model, may_read=readable(spec.model, settings), is_start=True
        )
        return str(found.path), None
    if spec.model is None or spec.model.processor is None:
        return None, None
    processor, param = spec.model.processor, "model.processor"
    fetch_job_model(processor, database=database, store=store, settings=settings, param=param)
    pinned = pinned_model(processor, lease, database=database, settings=settings, part="processor", param=param)
    return None, str(fetch_model(pinned, settings).path)


def check_module(spec: TrainingSpec, lease: WorkingLease, settings: Settings) -> None:
    """Refuse a module's file that holds something else than when the job was submitted.

    Raises:
        InvalidSpec: It changed after the job was submitted.
    """
    if spec.module is not None and recipe_name(spec.module) is None:
        path = check_code_path(spec.module, settings, param="module")
        check_pin(lease.pins.module, path, name=spec.module, param="module", error=InvalidSpec, by_content=True)


def _out_of_memory(spec: TrainingSpec, num_halvings: int, error: DeviceOutOfMemory) -> StokerError:
    """What an out-of-memory means: another try with half the micro-batch where the spec wants that and it can be."""
    if spec.on_out_of_memory == "halve":
        micro_batch, _ = halved(spec.arguments, num_halvings)
        if micro_batch > 1 and num_halvings < _MOST_HALVINGS:
            return error
        return ModelTooLarge(f"{error.message}; the micro-batch is {micro_batch} already")
    return ModelTooLarge(
        f"{error.message}; make arguments.per_device_train_batch_size smaller, or set on_out_of_memory: halve"
    )


@contextmanager
def _folder(settings: Settings, lease: WorkingLease) -> Iterator[Path]:
    """An empty folder of this lease's own; what dead leases of this slot left is deleted first."""
    of_slot = settings.training_path / lease.slot_id
    shutil.rmtree(of_slot, ignore_errors=True)
    folder = of_slot / lease.lease_id
    try:
        folder.mkdir(parents=True)
        (settings.training_path / "cache").mkdir(exist_ok=True)
    except OSError as error:
        raise MachineError(f"the training has nowhere to write: {error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(of_slot, ignore_errors=True)
