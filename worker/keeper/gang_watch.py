"""Checks several times a second whether a gang's lease is still active, since its slots are free once it has ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.db.database import Database
from jobs.db.states import StopReason
from jobs.errors import ServiceUnavailable
from jobs.ledger.leasing import gangs
from worker.keeper.decisions import RenewalRefused, StopRequested

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25


@contextmanager
def watching(
    database: Database, lease_id: str, report: Callable[[RenewalRefused | StopRequested], None]
) -> Iterator[None]:
    """Inside this context, a thread calls `report` when the lease has ended, or when a member asks the gang to stop.

    The renewals would report both too, but only every quarter of the lease's term. That is soon enough for a lease
    without a gang, since its slot starts no other lease before its keeper is done. But a gang's leader computes on the
    slots of other keepers, and a member's slot is idle until the member knows that the gang has ended.
    """
    left = threading.Event()

    def watch() -> None:
        was_active, has_reported_stop = True, False
        while not left.wait(_POLL_SECONDS):
            try:
                status = gangs.read_status(database, lease_id)
            except ServiceUnavailable as error:
                logger.debug(
                    "lease %s: its state could not be read; the next renewal will read it: %s", lease_id, error
                )
                continue
            if status.shutdown_asked and not has_reported_stop:
                has_reported_stop = True
                report(StopRequested(StopReason.SHUTDOWN))
            if not (status.is_active or was_active):
                # Only at the second look: a runner that notices it between two steps need not be killed.
                report(RenewalRefused())
                return
            was_active = status.is_active

    threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        yield
    finally:
        left.set()
