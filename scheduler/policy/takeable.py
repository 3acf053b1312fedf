"""Leases whose slots a job may get: those that are ending, those of elastic jobs, and those of trainings."""

from __future__ import annotations

from collections.abc import Iterator

from scheduler.policy.types import LeaseFacts


class Takeable:
    """Leases of some slots, in the order in which they are taken back. During a decision they only become fewer."""

    def __init__(self) -> None:
        self.coming: dict[str, LeaseFacts] = {}
        """Leases that are ending and whose slots are not yet assigned to a job, by id."""
        self.elastic: dict[str, dict[str, LeaseFacts]] = {}
        """Id of an elastic job -> its leases that were not asked to yield yet, by id."""
        self.trainings: dict[str, list[LeaseFacts]] = {}
        """Id of a training that a `high` job may preempt -> its leases."""
        self.num_elastic = 0
        self.num_of_trainings = 0
        self.largest_training = 0
        """Number of leases that no training exceeds here."""

    def add_coming(self, lease: LeaseFacts) -> None:
        self.coming[lease.id] = lease

    def add_elastic(self, lease: LeaseFacts) -> None:
        self.elastic.setdefault(lease.job_id, {})[lease.id] = lease
        self.num_elastic += 1

    def add_of_training(self, lease: LeaseFacts) -> None:
        gang = self.trainings.setdefault(lease.job_id, [])
        gang.append(lease)
        self.num_of_trainings += 1
        self.largest_training = max(self.largest_training, len(gang))

    def drop(self, lease: LeaseFacts) -> None:
        """Remove a lease that was assigned or asked to yield; with one of a training, all of the training."""
        if self.coming.pop(lease.id, None) is not None:
            return
        leases = self.elastic.get(lease.job_id)
        if leases is not None and leases.pop(lease.id, None) is not None:
            self.num_elastic -= 1
            if not leases:
                del self.elastic[lease.job_id]
        self.num_of_trainings -= len(self.trainings.pop(lease.job_id, ()))

    def copy_to(self, group_of: dict[str, Takeable]) -> None:
        """Add each lease to the leases of the group of its slot; those of other slots are left out."""
        for lease in self.coming.values():
            if lease.slot_id in group_of:
                group_of[lease.slot_id].add_coming(lease)
        for leases in self.elastic.values():
            for lease in leases.values():
                if lease.slot_id in group_of:
                    group_of[lease.slot_id].add_elastic(lease)
        for gang in self.trainings.values():
            for lease in gang:
                if lease.slot_id in group_of:
                    group_of[lease.slot_id].add_of_training(lease)

    def of_elastic(self) -> Iterator[LeaseFacts]:
        """All leases of elastic jobs."""
        for leases in self.elastic.values():
            yield from leases.values()
