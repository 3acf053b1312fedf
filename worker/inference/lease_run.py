"""One lease of an inference job, from its first claim to its last commit.

Equal input gives equal results, whatever the timing: the window that rows are sorted and packed in is exactly one
chunk, and the packing depends only on the chunk's own rows and the budget that the lease started with. So a batch, and
with it the last bits of an output, does not depend on which chunks a runner claims, how far its threads are ahead of
each other, or what another slot does. On a CPU it also depends on the number of threads that compute a batch, which the
number of the chunk's batches and the slot's threads determine. The one exception: after an out-of-memory, batches are
smaller, or are computed with other numbers of threads.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from functools import partial

from jobs.config.access_rules import AccessRules
from jobs.config.activities import Activity
from jobs.config.packed_attention import PackedAttention
from jobs.config.times import LeaseTimes
from jobs.data.sinks import open_sink
from jobs.data.sources import open_source
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import StopReason
from jobs.errors import LostLease, ServiceUnavailable
from jobs.ledger import chunks
from jobs.ledger.accounts.uploads import find_upload
from jobs.ledger.leasing.leases import WorkingLease
from jobs.specs.inference import InferenceSpec
from worker.device import device_name
from worker.inference.budget import open_budget
from worker.inference.chunks import ComputedGroup
from worker.inference.claim_window import ClaimWindow
from worker.inference.engine import InferenceEngine
from worker.inference.feed import Feed
from worker.inference.padding_verdicts import settle_padding
from worker.inference.stages import Closed
from worker.inference.tasks import check_inputs
from worker.inference.writer import Tally, Writer
from worker.models.cache import ModelCache
from worker.models.model_ref import ModelRef
from worker.models.pinned import check_pinned, pinned_model
from worker.models.task_model import ComputationStopped
from worker.models.trained import fetch_job_model
from worker.stop import Outcome, Stop
from worker.wire.pulse import Beat, Pulse

logger = logging.getLogger(__name__)


def run_lease(
    lease: WorkingLease,
    spec: InferenceSpec,
    *,
    database: Database,
    store: Store,
    rules: AccessRules,
    lease_times: LeaseTimes,
    chunk_seconds: float,
    models: ModelCache,
    encode_threads: int,
    num_threads: int,
    stop: Stop,
    pulse: Pulse,
    packed_attention: PackedAttention = PackedAttention.AUTO,
) -> Outcome:
    """Process a lease until its job has nothing left to claim or a stop is requested. All threads have ended on return.

    Args:
        lease: An active lease of an inference job.
        spec: The spec of that job.
        encode_threads: Number of threads that encode rows, for models whose rows are encoded one by one.
        num_threads: Number of CPU threads that compute.
        chunk_seconds: Duration of the work to claim at once.
        stop: `yield` and `shutdown` finish the chunk that is being computed, `cancel` stops before the next forward
            pass. A chunk of an `InFlight` model takes many forward passes: each of the three reasons stops it before
            the next one. A chunk that is stopped becomes pending again.
        pulse: Receives what each thread is doing. If this function raises, the last chunk that its thread reported, if
            any, caused the error.
        packed_attention: Whether text encoders compute batches without padding.

    Raises:
        UserError: The job cannot run because of its model, input, parameters or output.
        LostLease: This runner no longer holds the lease; nothing more was recorded.
        MachineError: The device or a service failed. Unrecorded chunks are pending again if the database was reachable.
    """
    pulse.at(Activity.LOAD)
    if stop.is_requested:
        return Outcome.STOPPED
    fetch_job_model(spec.model, database=database, store=store, rules=rules)
    ref = ModelRef.of(spec, source=pinned_model(spec.model, lease, database=database, rules=rules))
    model = models.get(ref, spec.task_parameters)
    loading_seconds = models.loading_seconds
    check_inputs(model, spec)
    check_pinned(spec.model, lease, rules=rules)  # it may have been replaced during loading
    settle_padding(model, ref, lease.job_id, database=database, device=models.device, packed_attention=packed_attention)
    source = open_source(
        spec.input,
        spec.columns(),
        rules=rules,
        store=store,
        find_upload=partial(find_upload, database),
        optional=spec.optional_inputs,
    )
    sink = open_sink(spec.output, vector_output=spec.vector_output, database=database, store=store)
    budget = open_budget(ref, spec.batching, model, device=models.device, database=database)
    engine = InferenceEngine(
        model,
        models.device,
        budget,
        make_room=lambda: models.drop_others(ref),
        encode_threads=encode_threads,
        num_threads=num_threads,
    )
    window = ClaimWindow(chunk_seconds)
    feed = Feed(lease, database=database, retries=lease_times, source=source, engine=engine, window=window, pulse=pulse)
    writer = Writer(
        lease,
        database=database,
        lease_seconds=lease_times.lease_seconds,
        sink=sink,
        engine=engine,
        window=window,
        pulse=pulse,
        on_failure=feed.wake,
        loading_seconds=loading_seconds,
    )
    logger.info(
        "%s with %s on %s: batches of at most %d tokens, padding included, and %d rows",
        spec.task, spec.model, device_name(models.device), budget.max_tokens, budget.max_rows,
    )  # fmt: skip
    started = time.monotonic()
    failure: BaseException | None = None
    try:
        feed.start()
        writer.start()
        with stop.notifying(feed.wake):
            _forward(feed, engine, writer, window, stop, pulse)
    except BaseException as error:  # noqa: BLE001 - raised below, once both sides have ended
        failure = error
    if failure is None:
        pulse.at(None)
    errors = [failure, feed.close(), writer.finish()]
    engine.close()
    if failure is None and writer.failed_on is not None:
        pulse.at(Activity.FORWARD, chunk=writer.failed_on)
    _log_summary(writer.tally, time.monotonic() - started)
    _end(database, lease, window, [error for error in errors if error is not None])
    return Outcome.STOPPED if stop.is_requested else Outcome.DRAINED


def _forward(
    feed: Feed, engine: InferenceEngine, writer: Writer, window: ClaimWindow, stop: Stop, pulse: Pulse
) -> None:
    """Compute group after group of batches on the device.

    CUDA runs asynchronously: a failure shows up at some later call. For the last beat to name the chunk that caused it,
    the thread synchronizes with the device before the device becomes idle, and before and after each group of a chunk
    that has crashed a runner before.
    """
    inside_chunk = False
    begun = 0.0
    stage = threading.current_thread().name
    engine.begin_thread()

    def is_over() -> bool:
        return writer.has_failed or (stop.reason == StopReason.CANCEL if inside_chunk else stop.is_requested)

    def beat_or_leave(start_row: int) -> None:
        pulse.record(Beat(stage, Activity.FORWARD, start_row))  # other threads call this, too
        if writer.has_failed or stop.reason == StopReason.CANCEL or (engine.is_in_flight and stop.is_requested):
            raise ComputationStopped

    while True:
        if feed.is_behind:
            engine.synchronize()
            pulse.at(None)
            if not inside_chunk:
                window.waiting()
        following = feed.next(is_over)
        if following is None:
            return
        start_row, is_suspect = following.chunk.start_row, following.chunk.claim.crashes > 0
        if is_suspect:
            engine.synchronize()
        if not inside_chunk:
            window.begun(start_row)
            begun = time.monotonic()
        try:
            between = partial(beat_or_leave, start_row)
            pieces = engine.compute(following.batches, following.collated, between)
        except ComputationStopped:
            return
        if is_suspect:
            engine.synchronize()
        computed = ComputedGroup(replace(following, collated=()), pieces)
        try:
            if not writer.has_room(computed):
                pulse.at(None)  # `put` waits for other threads, and one of those may be what hangs
            writer.put(computed)
        except Closed:
            return
        inside_chunk = not following.is_last
        if following.is_last:
            window.computed(following.chunk.num_rows, time.monotonic() - begun)


def _end(database: Database, lease: WorkingLease, window: ClaimWindow, errors: list[BaseException]) -> None:
    """Give back the chunks that were not recorded and raise an error, if any: `LostLease` first, else the first one."""
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
