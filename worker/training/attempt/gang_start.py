"""Waits at the beginning of a training's lease until every slot of its gang is held, and says which slots those are."""

from __future__ import annotations

from jobs.db.database import Database
from jobs.errors import LostLease
from jobs.ledger import gangs
from jobs.ledger.gangs import Place
from jobs.ledger.leases import WorkingLease
from worker.stop import Stop

_LOOK_SECONDS = 0.1  # the members end their runners first, which takes about as long


def wait_for_gang(lease: WorkingLease, *, database: Database, stop: Stop) -> tuple[Place, ...] | None:
    """Wait until the other slots of a leader's gang are held; a lease that stands alone need not wait.

    Args:
        lease: active, of rank 0.

    Returns:
        The slots by rank, the leader's own first; None where a stop was asked for before all were there.

    Raises:
        LostLease: the gang has fallen apart.
        ServiceUnavailable: the database is away.
    """
    while True:
        places = gangs.places(database, lease.lease_id)
        if not places or not all(place.is_live for place in places):
            raise LostLease("the gang has fallen apart")
        if all(place.is_held for place in places):
            return places
        if stop.wait(_LOOK_SECONDS):
            return None
