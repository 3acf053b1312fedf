"""Waits at the start of a training's lease until all slots of its gang are held."""

from __future__ import annotations

from jobs.db.database import Database
from jobs.errors import LostLease
from jobs.ledger.leasing import gangs
from jobs.ledger.leasing.gangs import Rank
from jobs.ledger.leasing.leases import WorkingLease
from worker.stop import Stop

_POLL_SECONDS = 0.1  # the gang members end their runners first, which takes about as long


def wait_for_gang(lease: WorkingLease, *, database: Database, stop: Stop) -> tuple[Rank, ...] | None:
    """Wait until all slots of a leader's gang are held. A lease without a gang does not wait.

    Args:
        lease: The active lease of rank 0.
        database: The database with the gang.
        stop: The stop request, if any.

    Returns:
        The slots by rank, the leader's own first. None if a stop was requested before all slots were held.

    Raises:
        LostLease: A lease of the gang ended.
        ServiceUnavailable: The database cannot be reached.
    """
    while True:
        places = gangs.ranks(database, lease.lease_id)
        if not places or not all(place.is_live for place in places):
            raise LostLease("another lease of the gang has ended")
        if all(place.is_held for place in places):
            return places
        if stop.wait(_POLL_SECONDS):
            return None
