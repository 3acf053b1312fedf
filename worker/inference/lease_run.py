"""One lease of an inference job, from its first claim to its last commit.

Equal input gives equal results, whatever the timing: the window that rows are sorted and packed in is exactly one
chunk, and the packing depends on the chunk's own rows and the lease's first budget only. So neither which chunks a
runner happens to claim, nor how far its threads are ahead of each other, nor what another slot does can change a batch,
and with it the last bits of an output. (Only an out-of-memory changes the batches after it: a fact of the device.)
"""

from __future__ import annotations

import logging
import time
from functools import partial

from jobs.config.activities import Activity
from jobs.config.settings import Settings
from jobs.data.sinks import open_sink
from jobs.data.sources import open_source
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import StopReason
from jobs.errors import LostLease, ServiceUnavailable
from jobs.ledger import chunks
from jobs.ledger.leases import WorkingLease
from jobs.ledger.uploads import find_upload
from jobs.specs.inference import InferenceSpec
from worker.device import device_name
from worker.inference.budget import open_budget
from worker.inference.claiming import ClaimWindow
from worker.inference.engine import InferenceEngine
from worker.inference.feed import Feed
from worker.inference.padding_verdicts import settle_padding
from worker.inference.stages import Closed
from worker.inference.writer import Tally, Writer
from worker.models.cache import ModelCache
from worker.models.model_ref import ModelRef
from worker.models.pinned import check_pinned, pinned_model
from worker.models.task_model import ComputationStopped, InFlight
from worker.models.trained import fetch_job_model
from worker.stop import Outcome, Stop
from worker.wire.pulse import Pulse

logger = logging.getLogger(__name__)


def run_lease(
    lease: WorkingLease,
    spec: InferenceSpec,
    *,
    database: Database,
    store: Store,
    settings: Settings,
    models: ModelCache,
    stop: Stop,
    pulse: Pulse,
) -> Outcome:
    """Work on a lease until its job has nothing left to claim or a stop is asked for. Leaves no thread behind.

    Args:
        lease: An active lease of an inference job.
        spec: The spec of that job.
        stop: `yield` and `shutdown` finish the chunk that is being computed, `cancel` ends at the next batch. A chunk
            that takes many forward passes (`InFlight`) is left by each of them at the next one, and pending again.
        pulse: is told what each thread does. Where this raises, the chunk that this thread said last is to blame, if
            it said one.

    Raises:
        UserError: the job cannot be done: its model, input, parameters or output.
        LostLease: the lease is somebody else's; nothing more was recorded.
        MachineError: the device or a service failed; the rest is pending again where the database could be reached.
    """
    pulse.at(Activity.LOAD)
    if stop.asked:
        return Outcome.STOPPED
    fetch_job_model(spec.model, database=database, store=store, rules=settings)
    ref = ModelRef.of(spec, source=pinned_model(spec.model, lease, database=database, rules=settings))
    model = models.get(ref, spec.task_parameters)
    check_pinned(spec.model, lease, rules=settings)  # nor may it have been replaced while it was being loaded
    settle_padding(model, ref, lease.job_id, database=database, device=models.device)
    source = open_source(
        spec.input,
        spec.columns(),
        rules=settings,
        store=store,
        find_upload=partial(find_upload, database),
        optional=spec.optional_inputs,
    )
    sink = open_sink(spec.output, vector_output=spec.vector_output, database=database, store=store)
    budget = open_budget(
        ref,
        spec.batching,
        model_bytes=model.memory_bytes,
        token_bytes=model.token_bytes if isinstance(model, InFlight) else None,
        device=models.device,
        database=database,
    )
    engine = InferenceEngine(model, models.device, budget, make_room=lambda: models.drop_others(ref))
    window = ClaimWindow(settings.chunk_seconds)
    feed = Feed(lease, database=database, retries=settings, source=source, engine=engine, window=window, pulse=pulse)
    writer = Writer(
        lease,
        database=database,
        lease_seconds=settings.lease_seconds,
        sink=sink,
        engine=engine,
        window=window,
        pulse=pulse,
        on_failure=feed.wake,
    )
    logger.info(
        "%s with %s on %s: batches of at most %d padded tokens and %d rows",
        spec.task, spec.model, device_name(models.device), budget.max_tokens, budget.max_rows,
    )  # fmt: skip
    started = time.monotonic()
    failure: BaseException | None = None
    try:
        feed.start()
        writer.start()
        with stop.telling(feed.wake):
            _forward(feed, engine, writer, window, stop, pulse)
    except BaseException as error:  # noqa: BLE001 - raised below, once both sides have ended
        failure = error
    if failure is None:
        pulse.at(None)
    errors = [failure, feed.close(), writer.finish()]
    if failure is None and writer.failed_on is not None:
        pulse.at(Activity.FORWARD, chunk=writer.failed_on)
    _log_summary(writer.tally, time.monotonic() - started)
    _end(database, lease, window, [error for error in errors if error is not None])
    return Outcome.STOPPED if stop.asked else Outcome.DRAINED


def _forward(
    feed: Feed, engine: InferenceEngine, writer: Writer, window: ClaimWindow, stop: Stop, pulse: Pulse
) -> None:
    """Take the device through batch after batch.

    A CUDA device is told of batches ahead and fails later, at whatever call comes next. So that the chunk named by the
    last beat is the one to blame, it is waited for before it goes idle, and around each batch of a chunk that was under
    suspicion before.
    """
    inside_chunk = False
    begun = 0.0

    def is_over() -> bool:
        return writer.has_failed or (stop.reason == StopReason.CANCEL if inside_chunk else stop.asked)

    def beat_or_leave(start_row: int) -> None:
        pulse.at(Activity.FORWARD, chunk=start_row)
        if engine.is_in_flight and (writer.has_failed or stop.asked):
            raise ComputationStopped

    while True:
        if not inside_chunk and feed.is_behind:
            engine.synchronize()
            pulse.at(None)
            window.waiting()
        batch = feed.next(is_over)
        if batch is None:
            return
        start_row, is_suspect = batch.chunk.start_row, batch.chunk.claim.crashes > 0
        if is_suspect:
            engine.synchronize()
        if not inside_chunk:
            window.begun(start_row)
            begun = time.monotonic()
        try:
            between = partial(beat_or_leave, start_row)
            pieces = engine.compute(batch.members, batch.collated, between) if batch.members else []
        except ComputationStopped:
            return
        if is_suspect:
            engine.synchronize()
        try:
            if writer.is_full:
                pulse.at(None)  # it waits for others, and they may be what hangs
            writer.put(batch, pieces)
        except Closed:
            return
        inside_chunk = not batch.is_last
        if batch.is_last:
            window.computed(batch.chunk.num_rows, time.monotonic() - begun)


def _end(database: Database, lease: WorkingLease, window: ClaimWindow, errors: list[BaseException]) -> None:
    """Give back what was not recorded, and raise what went wrong: a lost lease first, else the first error."""
    lost = next((error for error in errors if isinstance(error, LostLease)), None)
    if lost is not None:
        raise lost
    outstanding = window.outstanding()
    if outstanding:
        try:
            chunks.give_back(database, lease.lease_id, outstanding)
        except ServiceUnavailable as error:
            if not errors:
                raise
            logger.warning("%d chunks could not be given back: %s", len(outstanding), error.message)
    if errors:
        raise errors[0]


def _log_summary(tally: Tally, seconds: float) -> None:
    seconds = max(seconds, 1e-6)
    logger.info(
        "recorded %d rows (%d failed) in %d chunks, %d tokens in %.1f s: %.0f rows/s, %.0f tokens/s",
        tally.num_rows, tally.num_failed, tally.num_chunks, tally.num_tokens, seconds,
        tally.num_rows / seconds, tally.num_tokens / seconds,
    )  # fmt: skip
