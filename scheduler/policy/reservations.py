"""Reserve slots for the first gang that must wait until trainings end."""

from __future__ import annotations

from math import inf

from scheduler.policy.groups import Group
from scheduler.policy.preemption import Holders
from scheduler.policy.slot_table import Slots
from scheduler.policy.types import JobFacts, Reservation


def reserve(job: JobFacts, slots: Slots, holders: Holders) -> Reservation | None:
    """The slots of one host that a gang can have the earliest; None if no host has enough slots.

    If it is unknown when the gang can have them, on whichever host, those of the host where the fewest are in use.
    """
    best: tuple[tuple[float, int, list[str]], Reservation] | None = None
    for group in slots.groups(job):
        if len(group.slot_ids) < job.gang_size:
            continue
        ends = sorted((end, slot_id) for slot_id, end in _ends(job, group, holders).items())[: job.gang_size]
        at = ends[-1][0]
        cost = at, sum(end > holders.now for end, _ in ends), group.order
        if best is None or cost < best[0]:
            slot_ids = tuple(slot_id for _, slot_id in ends)
            best = cost, Reservation(job.id, slot_ids, None if at == inf else at)
    return best and best[1]


def _ends(job: JobFacts, group: Group, holders: Holders) -> dict[str, float]:
    """When a gang can have each slot of a group at the latest; infinite if that is unknown."""
    candidates = holders.elastic_candidates(job, group.takeable, same_priority=True, even_fresh=True)
    returnable = {lease.slot_id for lease in candidates}
    ends = {}
    for slot_id in group.slot_ids:
        if slot_id in returnable or slot_id not in holders.user:
            ends[slot_id] = holders.now
            continue
        user = holders.jobs.get(holders.user[slot_id])
        remaining = None if user is None else user.remaining_seconds
        ends[slot_id] = inf if remaining is None else holders.now + remaining
    return ends
