"""How a job can get its slots within one group: free ones, ones that are being returned, and ones to ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop
from itertools import islice
from math import inf

from jobs.specs.inference import Priority
from jobs.specs.needs import Needs
from scheduler.policy.groups import Group
from scheduler.policy.preemption import Holders
from scheduler.policy.slot_table import Slots
from scheduler.policy.types import JobFacts, LeaseFacts


@dataclass(frozen=True, slots=True)
class Way:
    """One way for a job to get its slots within a group of slots."""

    group: Group
    short: int
    """Number of slots that the job has to wait for."""
    coming: tuple[LeaseFacts, ...]
    """Leases that are ending already."""
    yields: tuple[LeaseFacts, ...]
    """Leases to ask back."""
    num_preempted: int
    """Trainings to preempt."""

    def cost(self) -> tuple[float, float, float]:
        """Sort key, smallest is best: few trainings preempted, few leases asked back, the fullest host."""
        return self.num_preempted, len(self.yields), self.group.num_free


class Ways:
    """Finds the best way for a job, and remembers what jobs that found none need.

    A decision frees no slot, and whatever a job may ask back, an earlier job could have asked back too. So if there is
    no way for a job, there is none for later jobs with the same needs.
    """

    def __init__(self, slots: Slots, holders: Holders) -> None:
        self._slots, self._holders = slots, holders
        self._refused: set[tuple[int, bool, int, Needs, str, int, bool, bool]] = set()
        self.returning: dict[str, list[LeaseFacts]] = {}
        """Job id -> leases that are ending and were asked to yield for it."""
        for lease in holders.takeable.coming.values():
            if lease.yield_for is not None:
                self.returning.setdefault(lease.yield_for, []).append(lease)
        self.served_first: set[str] = set()
        """Ids of the jobs whose own slots no other job of their priority may take now."""

    def is_refused(self, job: JobFacts, *, even_fresh: bool) -> bool:
        """Whether an equal job found no way."""
        return self._needs(job, even_fresh=even_fresh) in self._refused

    def find(self, job: JobFacts, *, even_fresh: bool = False) -> Way | None:
        """How best to free the slots that a job lacks, all in one group; None if no group has enough.

        Args:
            even_fresh: Whether trainings that have not run for their minimum time may be preempted too.
        """
        if self.is_refused(job, even_fresh=even_fresh):
            return None
        may_preempt = job.rank == Priority.HIGH.rank
        groups = self._slots.groups(job)
        bounds = [
            (least_cost, number)
            for number, group in enumerate(groups)
            if (least_cost := group.least_cost(job.gang_size, may_preempt=may_preempt)) is not None
        ]
        heapify(bounds)
        best: Way | None = None
        best_bound = (inf, inf, inf), 0
        while bounds and bounds[0] < best_bound:
            _, number = heappop(bounds)
            way = self._within(job, groups[number], even_fresh=even_fresh)
            if way is not None and (way.cost(), number) < best_bound:
                best, best_bound = way, (way.cost(), number)
        if best is None and not self.served_first:
            self._refused.add(self._needs(job, even_fresh=even_fresh))
        return best

    def _needs(self, job: JobFacts, *, even_fresh: bool) -> tuple[int, bool, int, Needs, str, int, bool, bool]:
        """What decides, at one point of the decision, whether there is a way for a job."""
        may_fill, version = self._slots.may_fill(job), self._holders.shares.version
        return job.rank, job.elastic, job.gang_size, job.needs, job.project, version, may_fill, even_fresh

    def _within(self, job: JobFacts, group: Group, *, even_fresh: bool) -> Way | None:
        """How to free the slots that a job lacks in a group; None if there are not enough."""
        short = job.gang_size - group.num_free
        coming = tuple(islice(self._coming(job, group), short))
        lacking = short - len(coming)
        candidates = self._holders.elastic_candidates(job, group.takeable, same_priority=True)
        elastic = tuple(islice(candidates, lacking))
        trainings: list[list[LeaseFacts]] = []
        if len(elastic) < lacking:
            trainings = self._holders.preempted(job, group.takeable, lacking - len(elastic), even_fresh=even_fresh)
            if not trainings:
                return None
        stopped = [lease for gang in trainings for lease in gang]
        lacking -= sum(lease.slot_id in group.slot_ids for lease in stopped)
        return Way(group, short, coming, (*elastic[: max(0, lacking)], *stopped), len(trainings))

    def _coming(self, job: JobFacts, group: Group) -> Iterator[LeaseFacts]:
        """Leases of a group that are ending: first those that were asked to yield for this job."""
        if job.id in self.served_first:
            yield from (lease for lease in self.returning.get(job.id, ()) if lease.id in group.takeable.coming)
        for lease in group.takeable.coming.values():
            if lease.yield_for not in self.served_first:
                yield lease
