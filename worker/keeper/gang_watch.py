"""Checks several times a second whether a gang's lease is still active, since its slots are free once it has ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.db.database import Database
from jobs.db.states import StopReason
from jobs.errors import ServiceUnavailable
from jobs.ledger import gangs
from worker.keeper.decisions import RenewalRefused, StopAsked

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25


@contextmanager
def watching(database: Database, lease_id: str, tell: Callable[[RenewalRefused | StopAsked], None]) -> Iterator[None]:
    """Inside this context, a thread calls `tell` when the lease has ended, or when a member asks the gang to stop.

    The renewals would report both too, but only every quarter of the lease's term. That is soon enough for a lease
    without a gang, since its slot starts no other lease before its keeper is done. But a gang's leader computes on the
    slots of other keepers, and a member's slot is idle until the member knows that the gang has ended.
    """
    left = threading.Event()

    def watch() -> None:
        was_active, has_told = True, False
        while not left.wait(_LOOK_SECONDS):
            try:
                standing = gangs.read_status(database, lease_id)
            except ServiceUnavailable as error:
                logger.debug("lease %s cannot be looked at, its heartbeats will tell: %s", lease_id, error)
                continue
            if standing.shutdown_asked and not has_told:
                has_told = True
                tell(StopAsked(StopReason.SHUTDOWN))
            if not (standing.is_active or was_active):
                # Only at the second look: a runner that notices it between two steps need not be killed.
                tell(RenewalRefused())
                return
            was_active = standing.is_active

    threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        yield
    finally:
        left.set()
