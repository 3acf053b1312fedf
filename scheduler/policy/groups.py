"""Groups of slots that a job may use together: their free slots, the best first, and the leases on them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import islice

from jobs.specs.needs import Needs
from scheduler.policy.preemption import Holders
from scheduler.policy.takeable import Takeable
from scheduler.policy.types import JobFacts, SlotFacts

_Scarcity = tuple[int, bool, int]  # see `SlotFacts.scarcity`


class FreeSlots:
    """The free slots of a decision. Slots are taken during the decision; none is added."""

    def __init__(self, slots: Iterable[SlotFacts]) -> None:
        self.by_id = {slot.id: slot for slot in slots}
        """The slots that were free at the start."""
        self.ids = set(self.by_id)
        """Ids of the slots that are still free."""
        self.num_on_host = Counter(slot.host for slot in self.by_id.values())
        self.taken: list[str] = []
        """Ids of the slots that were taken, in order."""
        self.warm: dict[str, set[str]] = {}
        """Model key -> ids of the slots of `by_id` that have the model loaded."""
        for slot in self.by_id.values():
            for model_key in slot.warm_models:
                self.warm.setdefault(model_key, set()).add(slot.id)

    def take(self, slot_ids: Iterable[str]) -> None:
        for slot_id in slot_ids:
            self.ids.remove(slot_id)
            self.num_on_host[self.by_id[slot_id].host] -= 1
            self.taken.append(slot_id)


class Group:
    """Slots within which a job finds all that it starts with, and the order in which it takes the free ones.

    Among the slots of one host, that order never changes during a decision. Among hosts, it changes only for those
    from which slots are taken, since it depends on their numbers of free slots. So each host has a sorted list, and a
    heap has an entry for each host: its best free slot, with the present number. Entries with another number are out of
    date.
    """

    def __init__(self, free: FreeSlots, slot_ids: frozenset[str], needs: Needs) -> None:
        self.slot_ids = slot_ids
        self.order = sorted(slot_ids)
        """Sort key, so that the first of equally good groups is always the same."""
        self.num_free = len(slot_ids & free.ids)
        self.takeable = Takeable()
        """Leases whose slots are in the group."""
        self._free = free
        self._needs = needs
        self._warm: dict[str, Group] = {}
        self._by_host: dict[str, list[tuple[_Scarcity, int, str]]] = defaultdict(list)  # the best slot is the last
        for slot_id in slot_ids & free.ids:
            slot = free.by_id[slot_id]
            self._by_host[slot.host].append((slot.scarcity(needs), len(slot.warm_models), slot_id))
        self._heap: list[tuple[_Scarcity, int, int, str, str]] = []
        self._num_taken = len(free.taken)  # of those that the heap accounts for
        for host, slots in self._by_host.items():
            slots.sort(reverse=True)
            self._push(host)

    def least_cost(self, num_slots: int, *, may_preempt: bool) -> tuple[int, int, int] | None:
        """What `Way.cost` (in `ways`) is at least for a job that starts in this group; None if it cannot.

        Args:
            num_slots: Number of slots with which the job starts.
            may_preempt: Whether it may preempt trainings.
        """
        takeable = self.takeable
        lacking = max(0, num_slots - self.num_free - len(takeable.coming))
        of_trainings = max(0, lacking - takeable.num_elastic)
        if of_trainings == 0:
            return 0, lacking, self.num_free
        if not may_preempt or of_trainings > takeable.num_of_trainings:
            return None
        return -(-of_trainings // takeable.largest_training), lacking, self.num_free

    def scarcity(self) -> _Scarcity:
        """The least of the free slots, of which there must be some."""
        (slot_id,) = self._first(1)
        return self._free.by_id[slot_id].scarcity(self._needs)

    def best(self, job: JobFacts) -> list[str]:
        """Ids of the best free slots for a job with the group's needs, by rule 7 of `decide`.

        Returns:
            As many slots as the job starts with, of one host; fewer if not so many are free.
        """
        if job.elastic and job.model_key in self._free.warm:
            if job.model_key not in self._warm:
                slot_ids = self.slot_ids & self._free.warm[job.model_key]
                self._warm[job.model_key] = Group(self._free, slot_ids, self._needs)
            warm = self._warm[job.model_key]._first(job.gang_size)
            if warm:
                return warm
        return self._first(job.gang_size)

    def _first(self, num_slots: int) -> list[str]:
        for host in {self._free.by_id[slot_id].host for slot_id in self._free.taken[self._num_taken :]}:
            self._push(host)
        self._num_taken = len(self._free.taken)
        while self._heap:
            _, num_free, _, _, host = self._heap[0]
            if num_free == self._free.num_on_host[host]:
                slot_ids = (slot_id for _, _, slot_id in reversed(self._by_host[host]) if slot_id in self._free.ids)
                return list(islice(slot_ids, num_slots))
            heappop(self._heap)
        return []

    def _push(self, host: str) -> None:
        """Enter the best free slot of a host into the heap, with the present number of its free slots."""
        slots = self._by_host.get(host, [])
        while slots and slots[-1][-1] not in self._free.ids:
            slots.pop()
        if slots:
            scarcity, num_warm, slot_id = slots[-1]
            heappush(self._heap, (scarcity, self._free.num_on_host[host], num_warm, slot_id, host))


class Groups:
    """The groups of slots in one of which a job must start; no slot is in two of them."""

    def __init__(self, free: FreeSlots, holders: Holders, slot_ids: Iterable[frozenset[str]], needs: Needs) -> None:
        self._free = free
        self._holders = holders
        self._needs = needs
        self._all: list[Group] = []
        self._group_of: dict[str, Group] = {}
        self._num_taken = len(free.taken)  # of those that the groups account for
        self._num_spent = len(holders.spent)
        self._add(slot_ids)

    def all(self) -> list[Group]:
        """The groups as they are now, by the ids of their slots."""
        for slot_id in self._free.taken[self._num_taken :]:
            if slot_id in self._group_of:
                self._group_of[slot_id].num_free -= 1
        for lease in self._holders.spent[self._num_spent :]:
            if lease.slot_id in self._group_of:
                self._group_of[lease.slot_id].takeable.drop(lease)
        self._num_taken, self._num_spent = len(self._free.taken), len(self._holders.spent)
        return self._all

    def bar(self, slot_ids: Iterable[str]) -> None:
        """Remove slots from the groups."""
        barred = {slot_id for slot_id in slot_ids if slot_id in self._group_of}
        if barred:
            self.all()
            smaller = {self._group_of.pop(slot_id) for slot_id in barred}
            self._all = [group for group in self._all if group not in smaller]
            self._add(group.slot_ids - barred for group in smaller)

    def _add(self, slot_ids: Iterable[frozenset[str]]) -> None:
        added = [Group(self._free, ids, self._needs) for ids in slot_ids if ids]
        self._all = sorted((*self._all, *added), key=lambda group: group.order)
        self._group_of.update((slot_id, group) for group in added for slot_id in group.slot_ids)
        if added:
            takeable_of = {slot_id: group.takeable for group in added for slot_id in group.slot_ids}
            self._holders.takeable.copy_to(takeable_of)
