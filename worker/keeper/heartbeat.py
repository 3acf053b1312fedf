"""A worker process's claim on its slot: enter, show it is alive, say when the runner is broken, leave."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from jobs.config.times import LeaseTimes
from jobs.db.database import Database
from jobs.errors import ServiceUnavailable
from jobs.ledger import slots
from jobs.ledger.slots import Standing
from worker.keeper.hearing import Hearing, Verdict

logger = logging.getLogger(__name__)


class Heartbeat:
    """Beats for one slot from a thread of its own, each `slot_seconds` / 4 and at once when something has changed."""

    def __init__(
        self,
        database: Database,
        times: LeaseTimes,
        *,
        slot_id: str,
        incarnation: str,
        warm_models: Callable[[], Sequence[str]],
        hearing: Hearing,
        on_displaced: Callable[[], None],
        on_heard: Callable[[], object],
        on_deaf: Callable[[], None],
    ) -> None:
        """
        Args:
            incarnation: this process's token.
            warm_models: keys of the models that the runner holds now.
            hearing: tells whether the doorbell works, where it was rung in vain.
            on_displaced: called when another process owns the slot; this one must end.
            on_heard: called when the slot is in use again after that.
            on_deaf: called when the doorbell does not reach this process; it must end, and another be started.
        """
        self._database, self._times = database, times
        self._slot_id, self._incarnation = slot_id, incarnation
        self._warm_models, self._on_displaced = warm_models, on_displaced
        self._hearing, self._on_heard, self._on_deaf = hearing, on_heard, on_deaf
        self._lock = threading.Lock()
        self._entered = False
        self._broken: str | None = None
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: beat now; False: leave
        self._thread = threading.Thread(target=self._beat_until_left, name="heartbeat", daemon=True)

    def enter(self) -> None:
        """Take the slot over, and begin to beat.

        Raises:
            ServiceUnavailable: the database cannot be reached.
        """
        with self._lock:
            slots.enter(self._database, self._slot_id, self._incarnation, self._times)
            self._entered = True
            if self._broken is not None:
                slots.mark_broken(self._database, self._slot_id, self._incarnation, self._broken)
        self._thread.start()

    def beat_now(self) -> None:
        """Tell the database without waiting for the next beat."""
        self._calls.put(True)

    def broken(self, reason: str) -> None:
        """Take the slot out of use: its runner cannot start."""
        with self._lock:
            self._broken = reason
            if self._entered:
                self._tell(lambda: slots.mark_broken(self._database, self._slot_id, self._incarnation, reason))

    def mended(self) -> None:
        """Put the slot back into use: its runner has started."""
        with self._lock:
            if self._broken is not None and self._entered:
                self._tell(lambda: slots.mark_mended(self._database, self._slot_id, self._incarnation))
            self._broken = None

    def leave(self) -> None:
        """Give the slot up, so that nothing more is granted to it. Safe inside a signal handler; does not wait."""
        self._calls.put(False)

    def join(self) -> None:
        """Wait until the slot is given up."""
        if self._entered:
            self._thread.join()

    def _tell(self, verb: Callable[[], None]) -> None:
        try:
            verb()
        except ServiceUnavailable as error:
            logger.warning("slot %s: its state could not be told: %s", self._slot_id, error)

    def _beat_until_left(self) -> None:
        out_of_reach = False
        while self._next_call():
            try:
                standing = slots.beat(self._database, self._slot_id, self._incarnation, self._warm_models())
                owned = standing is not Standing.DISPLACED
                if standing is Standing.UNHEARD and self._is_deaf():
                    return
                if owned and out_of_reach and self._broken is not None:  # it may not have been told
                    slots.mark_broken(self._database, self._slot_id, self._incarnation, self._broken)
            except ServiceUnavailable as error:
                if not out_of_reach:
                    logger.warning("slot %s: no heartbeat gets through: %s", self._slot_id, error)
                out_of_reach = True
                continue
            if out_of_reach:
                logger.info("slot %s: heartbeats get through again", self._slot_id)
            out_of_reach = False
            if not owned:
                logger.error("slot %s belongs to another worker process now; this one ends", self._slot_id)
                self._on_displaced()
                return
        self._tell(lambda: slots.retire(self._database, [self._slot_id], incarnation=self._incarnation))

    def _is_deaf(self) -> bool:
        """Find out why the doorbell was rung in vain; True where this process has to end for it."""
        match self._hearing.check():
            case Verdict.HEARS:
                logger.info("slot %s: its doorbell rings again", self._slot_id)
                slots.mark_heard(self._database, self._slot_id, self._incarnation)
                self._on_heard()
            case Verdict.DEAF:
                logger.error("slot %s: this worker does not hear its doorbell any more; it ends", self._slot_id)
                self._on_deaf()
                return True
        return False

    def _next_call(self) -> bool:
        try:
            return self._calls.get(timeout=self._times.slot_seconds / 4)
        except queue.Empty:
            return True
