"""Looks several times a second whether a gang's lease still stands: its slots are others' as soon as it has ended."""

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
    """While inside, `tell` hears from a thread of its own when the lease has ended, or its member wants it to stop.

    The heartbeats would bring both too, but only each quarter of the lease's life: for a lease that stands alone that
    is soon enough, since its slot takes no other before its keeper is done with it. A gang's leader computes on other
    keepers' slots, and a member's slot idles until it knows.
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
                # At the second look: a runner that finds it out by itself, between two steps, need not be killed.
                tell(RenewalRefused())
                return
            was_active = standing.is_active

    threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        yield
    finally:
        left.set()
