"""Pure scheduling: from jobs, slots, leases and the time to grants, yields and a reason for each job that waits.

The rules, in the order in which they bind:

1. Classes are strict: nothing is given to a lower class while a higher one can use it, and a job that finds no free
   slot asks leases of elastic jobs of lower classes to yield, never more of them than it needs. A job that waited for
   `AGED_SECONDS` counts one class up until it holds nothing again.
2. Within a class every job gets its first slots before any job grows: by age, then by id.
3. What is left is shared: each free slot goes to the elastic job of the class that holds the fewest, up to what its
   pending chunks and its `max_slots` allow. A job that holds nothing may ask a job of its own class to yield what that
   one holds beyond an equal share, once it has held it for `HOLD_SECONDS`, so that slots do not go to and fro; a
   training asks younger elastic jobs of its class for all that it needs, since it cannot do with less.
4. A gang gets all of its slots at once or none, all of one host and one kind of device. While slots are on their way
   back to it, the free ones beside them are kept for it. The first gang that has to wait for trainings to end has one
   reservation: on the slots of the place where fewest trainings are in its way no further training starts, of its own
   class or a lower one, so that no stream of smaller ones keeps it from ever starting. Elastic jobs fill those slots
   meanwhile, since they give them back in a chunk. Gangs behind the first one keep nothing.
5. A job of the class `high` that nothing else lets start preempts trainings of lower classes: only where then all that
   it needs comes free, elastic leases before trainings, a gang whole. Each training has its minimum of time between two
   starts and is preempted so many times at most (`victims`), so that it gets done too. While a job waits for that time
   to pass, no training behind it starts on those slots, so that the time is not begun again and again.
6. Among free slots, one that holds the model loaded comes first, then the fullest host (which keeps room for gangs).

The full policy grows behind the same signature: trainings that fill reserved slots, by an upper bound of the time that
they need (EASY backfill), are a longer rule 4, fair share between projects a further key in `views.order`; each needs
more fields in the views and none in the call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.ledger.leases import Grant
from jobs.messages import counted
from scheduler.policy.preemption import Holders, elastic_victims, preempted
from scheduler.policy.types import Decisions, JobView, LeaseView, SlotView, effective_rank, is_ready, order


def decide(jobs: Sequence[JobView], slots: Sequence[SlotView], leases: Sequence[LeaseView], now: float) -> Decisions:
    """Say which job gets which slots. The same content and time give the same decisions, in whatever order they come.

    Args:
        jobs: every queued or running job that might get something; those known only by their leases may be left out.
        slots: every slot that is online.
        leases: every live lease.
        now: Unix seconds by the database's clock.

    Returns:
        Grants that can be carried out one after another, leases to ask back, and the reasons of those that wait.
    """
    table = _Table(jobs, slots, leases, now)
    for _, members in table.classes():
        for job in members:
            if not table.held[job.id] and is_ready(job, now):
                table.start(job)
        table.share_free(members)
        table.ask_back(members)
    return table.decisions()


@dataclass(frozen=True, slots=True)
class _Way:
    """How a job may come to its slots within some of them."""

    place: frozenset[str]
    """Ids of the slots among which it starts."""
    num_free: int
    short: int
    """Slots that it has to wait for."""
    coming: tuple[str, ...] = ()
    """Slots on their way back that it waits for."""
    yields: tuple[LeaseView, ...] = ()
    num_preempted: int = 0
    """Trainings that have to stop for it."""

    def cost(self) -> tuple[int, int, int, list[str]]:
        """The least is the best: few trainings stopped, few leases asked back, the fullest host."""
        return self.num_preempted, len(self.yields), self.num_free, sorted(self.place)


class _Table:
    """The slots on the table during one decision: what is free, what is on its way back, what was decided."""

    def __init__(
        self, jobs: Sequence[JobView], slots: Sequence[SlotView], leases: Sequence[LeaseView], now: float
    ) -> None:
        self.now = now
        self.jobs = {job.id: job for job in sorted(jobs, key=order)}
        leases = sorted(leases, key=lambda lease: lease.id)
        taken = {lease.slot_id for lease in leases}
        self.online = frozenset(slot.id for slot in slots)
        pools: dict[tuple[str, str], set[str]] = {}
        for slot in slots:
            pools.setdefault((slot.host, slot.kind), set()).add(slot.id)
        self.pools = [frozenset(members) for _, members in sorted(pools.items())]
        """Slots that a gang may have together."""
        self.free = {slot.id: slot for slot in sorted(slots, key=lambda slot: slot.id) if slot.id not in taken}
        self.held = Counter(lease.job_id for lease in leases)  # live leases, those on their way back included
        self.staying = Counter(lease.job_id for lease in leases if not lease.ending)
        self.working = Counter(lease.job_id for lease in leases if lease.working and not lease.ending)
        self.victims = [lease for lease in leases if not lease.ending]
        self.coming = [lease.slot_id for lease in leases if lease.ending and lease.slot_id in self.online]
        """Slots that come back by themselves and are not yet promised to anyone."""
        self.grants: list[Grant] = []
        self.yields: list[str] = []
        self.promised: dict[str, int] = {}
        self.barred: frozenset[str] = frozenset()
        """Slots on which no further training starts: a job waits until those there may be stopped for it."""
        self.bides: set[str] = set()
        """The jobs that wait so."""
        self.reserved_for: str | None = None
        """Id of the gang for which slots are kept until enough trainings there have ended."""

    def classes(self) -> list[tuple[int, list[JobView]]]:
        """Effective rank and its jobs in order, the first served class first."""
        by_rank: dict[int, list[JobView]] = {}
        for job in self.jobs.values():
            by_rank.setdefault(effective_rank(job), []).append(job)
        return sorted(by_rank.items())

    def start(self, job: JobView) -> None:
        """Give a job that holds nothing its first slots, or see to it that they come back."""
        places = [self.online] if job.gang_size == 1 else [pool for pool in self.pools if len(pool) >= job.gang_size]
        if not job.elastic and self.barred:
            places = [place - self.barred for place in places]
        fitting = [place for place in places if len(place & self.free.keys()) >= job.gang_size]
        if fitting:
            fullest = min(fitting, key=lambda place: (len(place & self.free.keys()), sorted(place)))
            self._grant(job, self._choose(job, fullest))
            return
        elastic = elastic_victims(job, self._holders(), own_class=True)
        ways = [way for place in places if (way := self._way(job, place, elastic)) is not None]
        if not ways:
            later = [way for place in places if (way := self._way(job, place, elastic, even_fresh=True)) is not None]
            if later:
                self.barred |= min(later, key=_Way.cost).place
                self.bides.add(job.id)
            elif job.gang_size > 1 and self.reserved_for is None and places:
                reserved = min(places, key=lambda place: (self._num_in_the_way(job, place), sorted(place)))
                self.barred |= reserved
                self.reserved_for = job.id
            return
        way = min(ways, key=_Way.cost)
        for slot_id in way.coming:
            self.coming.remove(slot_id)
        self._ask(way.yields)
        self.promised[job.id] = way.short
        for slot_id in way.place & self.free.keys():  # a gang's; nobody behind it may take them meanwhile
            del self.free[slot_id]

    def share_free(self, members: Iterable[JobView]) -> None:
        """Give each free slot to the job of the class that holds the fewest and can use one more."""
        hungry = [job for job in members if self._room(job) > 0]
        while self.free and hungry:
            job = min(hungry, key=lambda job: (self.staying[job.id], job.created_at, job.id))
            self._grant(job, self._choose(job, self.online))
            hungry = [job for job in hungry if self._room(job) > 0]

    def ask_back(self, members: Iterable[JobView]) -> None:
        """Ask lower classes for the slots that the jobs of this class could still use."""
        for job in members:
            short = self._room(job) - self.promised.get(job.id, 0)
            if short <= 0:
                continue
            on_the_way = min(short, len(self.coming))
            del self.coming[:on_the_way]
            victims = elastic_victims(job, self._holders(), own_class=False)
            self._ask(victims[: short - on_the_way])

    def decisions(self) -> Decisions:
        """All that was decided, with a reason for each job that holds nothing."""
        waiting = [job for job in self.jobs.values() if not self.held[job.id]]
        return Decisions(
            grants=tuple(self.grants),
            yields=tuple(self.yields),
            explanations={job.id: self._explain(job, place) for place, job in enumerate(waiting, start=1)},
        )

    # -- steps

    def _way(
        self,
        job: JobView,
        place: frozenset[str],
        victims: Sequence[LeaseView],
        *,
        even_fresh: bool = False,
    ) -> _Way | None:
        """How the slots that a job lacks among these come back; None where it would wait for what cannot yield."""
        if len(place) < job.gang_size:
            return None
        num_free = len(place & self.free.keys())
        short = job.gang_size - num_free
        coming = tuple(slot_id for slot_id in self.coming if slot_id in place)[:short]
        lacking = short - len(coming)
        elastic = [lease for lease in victims if lease.slot_id in place]
        if lacking <= len(elastic):
            return _Way(place, num_free, short, coming, tuple(elastic[:lacking]))
        num_stopped = lacking - len(elastic)
        trainings = preempted(job, self._holders(), place, num_stopped, even_fresh=even_fresh)
        if not trainings:
            return None
        stopped = [lease for gang in trainings for lease in gang]
        lacking -= sum(lease.slot_id in place for lease in stopped)
        yields = (*elastic[: max(0, lacking)], *stopped)
        return _Way(place, num_free, short, coming, yields, len(trainings))

    def _num_in_the_way(self, job: JobView, place: frozenset[str]) -> int:
        """How many slots held by trainings a gang waits for at a place."""
        num_elastic = sum(
            lease.slot_id in place and (holder := self.jobs.get(lease.job_id)) is not None and holder.elastic
            for lease in self.victims
        )
        num_coming = sum(slot_id in place for slot_id in self.coming)
        return job.gang_size - len(place & self.free.keys()) - num_coming - num_elastic

    def _holders(self) -> Holders:
        return Holders(self.jobs, self.online, self.victims, self.held, self.staying, self.now)

    def _room(self, job: JobView) -> int:
        """How many more slots an elastic job can use."""
        if not job.elastic or not is_ready(job, self.now):
            return 0
        by_chunks = self.working[job.id] + job.pending_chunks - self.staying[job.id]
        by_limit = (len(self.online) if job.max_slots is None else job.max_slots) - self.held[job.id]
        return min(by_chunks, by_limit, len(self.online) - self.staying[job.id])

    def _choose(self, job: JobView, place: frozenset[str]) -> list[SlotView]:
        """The best free slots of a place for a job: warm ones, then the fullest host; a gang leaves warm ones alone."""
        free_on = Counter(slot.host for slot in self.free.values())

        def cost(slot: SlotView) -> tuple[bool, int, int, str]:
            cold = job.elastic and job.model_key not in slot.warm_models
            return cold, free_on[slot.host], len(slot.warm_models), slot.id

        return sorted((slot for slot in self.free.values() if slot.id in place), key=cost)[: job.gang_size]

    def _grant(self, job: JobView, chosen: Sequence[SlotView]) -> None:
        for slot in chosen:
            del self.free[slot.id]
        self.held[job.id] += len(chosen)
        self.staying[job.id] += len(chosen)
        self.grants.append(Grant(job_id=job.id, slot_ids=tuple(slot.id for slot in chosen)))

    def _ask(self, leases: Sequence[LeaseView]) -> None:
        for lease in leases:
            self.yields.append(lease.id)
            self.victims.remove(lease)
            self.staying[lease.job_id] -= 1
            self.working[lease.job_id] -= lease.working

    def _explain(self, job: JobView, place: int) -> str:
        num_slots = len(self.online)
        if job.not_before > self.now:
            return f"backs off for another {job.not_before - self.now:.0f} s after a failure"
        if job.elastic and job.pending_chunks == 0:
            return "its chunks back off after a failure"
        if num_slots == 0:
            return "no slot is online"
        if job.id in self.promised:
            return f"next: {counted(self.promised[job.id], 'slot')} on the way back from other jobs"
        if job.id in self.bides:
            return f"next: a training makes room for it once that has had its slots for {job.preemptable_seconds:g} s"
        if job.gang_size > 1:
            needs = f"needs {job.gang_size} slots of one host at once"
            largest = max(len(pool) for pool in self.pools)
            if job.gang_size > largest:
                return f"{needs}; {counted(largest, 'is', 'are')} online on the largest"
            if job.id == self.reserved_for:
                turn = "next" if place == 1 else f"number {place} in the queue"
                return f"{turn}: {needs}, which are kept for it as the trainings on them end"
            most_free = max(len(pool & self.free.keys()) for pool in self.pools)
            return f"{needs}; at most {counted(most_free, 'is', 'are')} free together"
        busy = "the only slot is" if num_slots == 1 else f"all {num_slots} slots are"
        return f"number {place} in the queue; {busy} busy with jobs before it"
