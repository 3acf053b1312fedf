"""Ring slots' doorbells, and ring again those that were not answered: Redis may lose any message."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from celery import Celery

from jobs import queue
from jobs.config.times import LeaseTimes
from jobs.db.database import Database
from jobs.errors import ServiceUnavailable
from jobs.ledger.leasing import leases
from jobs.ledger.leasing.grants import Ring

logger = logging.getLogger(__name__)


def ring_all(app: Celery, rings: Sequence[Ring]) -> int:
    """Ring slots' doorbells in one round trip. If Redis is away, they are left to the reaper, which rings again.

    Returns:
        The number of doorbells rung: all or none.
    """
    if not rings:
        return 0
    try:
        queue.ring_all(app, [(ring.slot_id, ring.lease_id) for ring in rings])
    except ServiceUnavailable as error:
        logger.warning("cannot ring %d doorbells, which are rung again later: %s", len(rings), error)
        return 0
    return len(rings)


def ring_again(db: Database, app: Celery, times: LeaseTimes) -> None:
    """Ring for the leases whose slots did not answer in time. A slot that never answers loses its lease."""
    if queue.broker_trouble(app) is not None:  # Redis refuses rings, so it is not the slots that fail to answer
        return
    rings = leases.unanswered(db, times)
    for ring in rings:
        logger.warning("slot %s did not answer for lease %s; ringing again", ring.slot_id, ring.lease_id)
    ring_all(app, rings)
