"""A worker process's claim on its slot: enter it, send heartbeats, report a broken runner, and leave."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from jobs.config.times import LeaseTimes
from jobs.db.database import Database
from jobs.errors import ServiceUnavailable
from jobs.ledger import slots
from jobs.ledger.slots import Ownership
from worker.keeper.doorbell_check import DoorbellCheck, DoorbellState

logger = logging.getLogger(__name__)


class Heartbeat:
    """Sends heartbeats for one slot from its own thread: every `slot_seconds` / 4, and at once after a change."""

    def __init__(
        self,
        database: Database,
        times: LeaseTimes,
        *,
        slot_id: str,
        incarnation: str,
        warm_models: Callable[[], Sequence[str]],
        doorbell_check: DoorbellCheck,
        on_displaced: Callable[[], None],
        on_doorbell_works: Callable[[], object],
        on_doorbell_lost: Callable[[], None],
    ) -> None:
        """
        Args:
            incarnation: The token of this process.
            warm_models: Returns the keys of the models that the runner has loaded now.
            doorbell_check: Checks whether the doorbell reaches this process, after a ring that was not answered.
            on_displaced: Called when another process owns the slot; this one must end.
            on_doorbell_works: Called when that check has shown that the doorbell works; the slot is in use again.
            on_doorbell_lost: Called when the doorbell does not reach this process, which must end and be replaced.
        """
        self._database, self._times = database, times
        self._slot_id, self._incarnation = slot_id, incarnation
        self._warm_models, self._on_displaced = warm_models, on_displaced
        self._doorbell_check, self._on_doorbell_works, self._on_doorbell_lost = (
            doorbell_check,
            on_doorbell_works,
            on_doorbell_lost,
        )
        self._lock = threading.Lock()
        self._entered = False
        self._broken: str | None = None
        self._is_recorded = True
        """Whether the database knows that the slot is broken, or that it no longer is."""
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: beat now; False: leave
        self._thread = threading.Thread(target=self._beat_until_left, name="heartbeat", daemon=True)

    def enter(self) -> None:
        """Take over the slot and start to send heartbeats.

        Raises:
            ServiceUnavailable: The database cannot be reached.
        """
        with self._lock:
            slots.enter(self._database, self._slot_id, self._incarnation, self._times)
            self._entered = True
            self._is_recorded = self._broken is None
            self._record_state()
        self._thread.start()

    def beat_now(self) -> None:
        """Send a heartbeat now instead of at the next regular time."""
        self._calls.put(True)

    def broken(self, reason: str) -> None:
        """Take the slot out of use, because its runner cannot start."""
        with self._lock:
            self._broken, self._is_recorded = reason, False
            self._try_to_record(self._record_state)

    def mended(self) -> None:
        """Put the slot back into use, because its runner has started."""
        with self._lock:
            if self._broken is not None:
                self._broken, self._is_recorded = None, False
                self._try_to_record(self._record_state)

    def leave(self) -> None:
        """Retire the slot, so that it gets no more leases. Does not wait, and is safe inside a signal handler."""
        self._calls.put(False)

    def join(self) -> None:
        """Wait until the slot is retired."""
        if self._entered:
            self._thread.join()

    def _try_to_record(self, verb: Callable[[], None]) -> None:
        try:
            verb()
        except ServiceUnavailable as error:
            logger.warning("slot %s: its state could not be recorded: %s", self._slot_id, error)

    def _record_state(self) -> None:
        """Record whether the slot is broken, unless that is recorded already; the next beat repeats what failed."""
        if self._is_recorded or not self._entered:
            return
        if self._broken is None:
            slots.mark_mended(self._database, self._slot_id, self._incarnation)
        else:
            slots.mark_broken(self._database, self._slot_id, self._incarnation, self._broken)
        self._is_recorded = True

    def _beat_until_left(self) -> None:
        out_of_reach = False
        while self._next_call():
            try:
                ownership = slots.beat(self._database, self._slot_id, self._incarnation, self._warm_models())
                owned = ownership is not Ownership.DISPLACED
                if ownership is Ownership.UNHEARD and self._has_lost_doorbell():
                    return
                if owned:
                    with self._lock:
                        # A slot whose beats did not arrive became offline, and this beat put it online again.
                        self._is_recorded = self._is_recorded and (not out_of_reach or self._broken is None)
                        self._record_state()
            except ServiceUnavailable as error:
                if not out_of_reach:
                    logger.warning("slot %s: heartbeats cannot be recorded: %s", self._slot_id, error)
                out_of_reach = True
                continue
            if out_of_reach:
                logger.info("slot %s: heartbeats are recorded again", self._slot_id)
            out_of_reach = False
            if not owned:
                logger.error("slot %s now belongs to another worker process; this one ends", self._slot_id)
                self._on_displaced()
                return
        self._try_to_record(lambda: slots.retire(self._database, [self._slot_id], incarnation=self._incarnation))

    def _has_lost_doorbell(self) -> bool:
        """Check why a ring was not answered; True if this process must end because rings do not reach it."""
        match self._doorbell_check.check():
            case DoorbellState.WORKS:
                logger.info("slot %s: the doorbell works again", self._slot_id)
                slots.mark_heard(self._database, self._slot_id, self._incarnation)
                self._on_doorbell_works()
            case DoorbellState.LOST:
                logger.error("slot %s: the doorbell no longer reaches this worker; it ends", self._slot_id)
                self._on_doorbell_lost()
                return True
        return False

    def _next_call(self) -> bool:
        try:
            return self._calls.get(timeout=self._times.slot_seconds / 4)
        except queue.Empty:
            return True
