"""The online slots of a decision: which of them are free, and which a job may use."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from jobs.specs.needs import Needs
from scheduler.policy.groups import FreeSlots, Group, Groups
from scheduler.policy.preemption import Holders
from scheduler.policy.types import JobFacts, SlotFacts


class Slots:
    """The online slots. During a decision, free ones are taken and more of them are barred; none is released."""

    def __init__(self, slots: Sequence[SlotFacts], occupied: Collection[str], holders: Holders) -> None:
        self.online = frozenset(slot.id for slot in slots)
        self.free = FreeSlots(slot for slot in slots if slot.id not in occupied)
        self.barred: set[str] = set()
        """Ids of slots on which no other training may start."""
        self.reserved: frozenset[str] = frozenset()
        """Ids of slots on which only trainings may start that end before `reserved_at`."""
        self.reserved_at: float | None = None
        self._slots = tuple(slots)
        self._holders = holders
        pools: dict[tuple[str, str], set[str]] = {}
        self.of_kind: dict[str, set[str]] = {}
        """Kind of device -> ids of its slots."""
        self._with_model: dict[str, set[str]] = {}
        for slot in slots:
            pools.setdefault((slot.host, slot.kind), set()).add(slot.id)
            self.of_kind.setdefault(slot.kind, set()).add(slot.id)
            for model_key in slot.warm_models:
                self._with_model.setdefault(model_key, set()).add(slot.id)
        self._usable = {Needs(): self.online}
        self._pools = {Needs(): [frozenset(pool) for pool in pools.values()]}
        self._groups: dict[tuple[Needs, bool, bool, bool], Groups] = {}
        self._growing: dict[tuple[Needs, str, frozenset[str]], Groups] = {}

    def usable(self, job: JobFacts) -> frozenset[str]:
        """Ids of the slots that have what a job needs."""
        return self.usable_with(job.needs)

    def usable_with(self, needs: Needs) -> frozenset[str]:
        """Ids of the slots that meet some needs."""
        if needs not in self._usable:
            self._usable[needs] = frozenset(slot.id for slot in self._slots if needs.met_by(slot))
        return self._usable[needs]

    def pools(self, job: JobFacts) -> list[frozenset[str]]:
        """Ids of the usable slots of each host and kind of device, which a gang may use together."""
        if job.needs not in self._pools:
            self._pools[job.needs] = [pool & self.usable(job) for pool in self._pools[Needs()]]
        return self._pools[job.needs]

    def groups(self, job: JobFacts) -> Sequence[Group]:
        """The groups of slots in one of which a job must find all that it starts with, by the ids of their slots."""
        key = job.needs, job.gang_size > 1, job.elastic, self.may_fill(job)
        if key not in self._groups:
            pools = self.pools(job) if job.gang_size > 1 else [self.usable(job)]
            closed = set() if job.elastic else self.barred if self.may_fill(job) else self.barred | self.reserved
            self._groups[key] = Groups(self.free, self._holders, [pool - closed for pool in pools], job.needs)
        return self._groups[key].all()

    def to_grow(self, job: JobFacts, kinds: frozenset[str]) -> Group | None:
        """The slots that an elastic job can use if it loads its model only on some kinds of device; None: none."""
        if len(kinds) == len(self.of_kind):
            return self.groups(job)[0]
        key = job.needs, job.model_key, kinds
        if key not in self._growing:
            places = [self._with_model.get(job.model_key, set()), *(self.of_kind[kind] for kind in kinds)]
            slot_ids = self.usable(job).intersection(set[str]().union(*places))
            self._growing[key] = Groups(self.free, self._holders, [slot_ids], job.needs)
        return next(iter(self._growing[key].all()), None)

    def may_fill(self, job: JobFacts) -> bool:
        """Whether a training ends before the reserved slots are needed."""
        if job.elastic or job.remaining_seconds is None or self.reserved_at is None:
            return False
        return self._holders.now + job.remaining_seconds <= self.reserved_at

    def bar(self, slot_ids: Iterable[str]) -> None:
        """Let no other training start on some slots."""
        self.barred.update(slot_ids)
        for (_, _, is_elastic, _), groups in self._groups.items():
            if not is_elastic:
                groups.bar(slot_ids)

    def reserve(self, slot_ids: Iterable[str], at: float | None) -> None:
        """Let no training start on some slots unless it ends before a time; None: no training at all."""
        self.reserved, self.reserved_at = frozenset(slot_ids), at
        for (_, _, is_elastic, may_fill), groups in self._groups.items():
            if not is_elastic and not may_fill:
                groups.bar(self.reserved)
