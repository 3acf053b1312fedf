"""Whether it pays for a job to load its model on one more slot."""

from __future__ import annotations

import math

from scheduler.policy.groups import Group
from scheduler.policy.preemption import Holders
from scheduler.policy.slot_table import Slots
from scheduler.policy.types import JobFacts

LOADING_FACTOR = 3.0
"""A job loads its model on one more slot only if it still takes this many times as long on the slots that it has."""


def most_slots(job: JobFacts, kind: str) -> float:
    """Number of slots up to which it pays for a job to add slots of a kind that must load its model first.

    The first slot always pays, and so does every slot while a time is unknown.
    """
    loading_seconds = job.loading_seconds.get(kind)
    if job.work_seconds is None or not loading_seconds:
        return math.inf
    return max(1, math.ceil(job.work_seconds / (LOADING_FACTOR * loading_seconds)))


class Growth:
    """Which slots a job may use beside those that it has."""

    def __init__(self, slots: Slots, holders: Holders) -> None:
        self._slots, self._holders = slots, holders

    def slots(self, job: JobFacts) -> tuple[Group | None, float]:
        """The slots that a job may add (None: none), and how many it may take before fewer of them pay."""
        if job.work_seconds is None or not job.loading_seconds:
            return self._slots.groups(job)[0], math.inf
        reached = self._holders.reached[job.id]
        more = {kind: most_slots(job, kind) - reached for kind in self._slots.of_kind}
        paying = {kind: number for kind, number in more.items() if number > 0}
        return self._slots.to_grow(job, frozenset(paying)), min(paying.values(), default=math.inf)

    def is_limited(self, job: JobFacts) -> bool:
        """Whether there are slots that a job does not use because loading its model there does not pay."""
        return self.slots(job)[0] is not self._slots.groups(job)[0]

    def may_use(self, job: JobFacts, slot_id: str) -> bool:
        """Whether a job may add a slot."""
        group, _ = self.slots(job)
        return group is not None and slot_id in group.slot_ids
