"""Decide which job gets which slots: a pure function of jobs, slots, leases and the time.

The rules, in order of precedence:

1. Priorities are strict: a slot goes to the highest priority that can use it. A job that finds no free slot asks leases
   of elastic jobs of lower priority to yield, never more than it needs. A job that has waited for `AGED_SECONDS` counts
   as one priority higher until it holds no slot again.
2. Within a priority, every job gets its first slots before any job grows; older jobs first, then by id.
3. Remaining slots are shared: each free slot goes to the elastic job that holds the fewest, up to its number of pending
   chunks and its `max_slots`. A job without slots may ask a job of the same priority to yield the slots beyond an equal
   share, once that job has held them for `HOLD_SECONDS`, so that slots do not move back and forth. A training asks
   younger elastic jobs of its priority for all slots that it needs, since it cannot start with fewer.
4. A gang gets all of its slots at once or none; they are of one host and one kind of device. While some slots are being
   returned to it, the free slots of that host are kept for it. The first gang that must wait for trainings to end has a
   reservation: on the host where the fewest trainings are in its way, no training of the same or a lower priority
   starts, so that a stream of smaller trainings cannot starve the gang. Elastic jobs use those slots meanwhile, since
   they return them after one chunk. Later gangs have no reservation. A training whose backoff ends within
   `BRIEF_SECONDS` keeps the free slots that it can start on, since another training would hold them for hours.
5. A job of priority `high` that cannot start otherwise preempts trainings of lower priority, but only if that frees all
   the slots that it needs; elastic leases go before trainings, and a gang goes as a whole. Each training keeps its
   slots for a minimum time and is preempted a limited number of times (`preemption`), so that it finishes eventually.
   While a job waits for that minimum time, no later training starts on those slots, so that the time does not start
   over.
6. Among free slots, those with the model already loaded come first, then those of the fullest host (which leaves room
   for gangs).

The signature leaves room for more: backfilling reserved slots with trainings whose run time is bounded (EASY backfill)
would extend rule 4, and fair share between projects would be another sort key in `types.order`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.ledger.leases import Grant
from jobs.messages import counted
from scheduler.policy.preemption import Holders, elastic_victims, preempted
from scheduler.policy.types import (
    Decisions,
    JobFacts,
    LeaseFacts,
    SlotFacts,
    effective_rank,
    is_ready,
    is_soon_ready,
    order,
)


def decide(jobs: Sequence[JobFacts], slots: Sequence[SlotFacts], leases: Sequence[LeaseFacts], now: float) -> Decisions:
    """Decide which job gets which slots. Equal input gives equal decisions, in whatever order it is passed.

    Args:
        jobs: All queued or running jobs that might get a slot; jobs known only by their leases may be missing.
        slots: All online slots.
        leases: All live leases.
        now: Unix seconds of the database's clock.

    Returns:
        Grants in the order to carry them out, leases to ask back, and why jobs wait.
    """
    table = _Table(jobs, slots, leases, now)
    for _, members in table.classes():
        for job in members:
            if table.held[job.id]:
                continue
            if is_ready(job, now):
                table.start(job)
            elif is_soon_ready(job, now):
                table.keep(job)
        table.share_free(members)
        table.ask_back(members)
    return table.decisions()


@dataclass(frozen=True, slots=True)
class _Way:
    """One way for a job to get its slots within a group of slots."""

    place: frozenset[str]
    """Ids of the group's slots."""
    num_free: int
    short: int
    """Number of slots that the job has to wait for."""
    coming: tuple[str, ...] = ()
    """Slots that are already being returned."""
    yields: tuple[LeaseFacts, ...] = ()
    num_preempted: int = 0
    """Trainings to preempt."""

    def cost(self) -> tuple[int, int, int, list[str]]:
        """Sort key, smallest is best: few trainings preempted, few leases asked back, the fullest host."""
        return self.num_preempted, len(self.yields), self.num_free, sorted(self.place)


class _Table:
    """The state of one decision: which slots are free or being returned, and what was decided so far."""

    def __init__(
        self, jobs: Sequence[JobFacts], slots: Sequence[SlotFacts], leases: Sequence[LeaseFacts], now: float
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
        """Groups of slots that one gang may use together."""
        self.free = {slot.id: slot for slot in sorted(slots, key=lambda slot: slot.id) if slot.id not in taken}
        self.held = Counter(lease.job_id for lease in leases)  # live leases, including those being returned
        self.staying = Counter(lease.job_id for lease in leases if not lease.ending)
        self.working = Counter(lease.job_id for lease in leases if lease.working and not lease.ending)
        self.victims = [lease for lease in leases if not lease.ending]
        self.coming = [lease.slot_id for lease in leases if lease.ending and lease.slot_id in self.online]
        """Slots that are being returned and not yet promised to a job."""
        self.grants: list[Grant] = []
        self.yields: list[str] = []
        self.promised: dict[str, int] = {}
        self.barred: frozenset[str] = frozenset()
        """Slots on which no training may start, because a job waits until the trainings there may be preempted."""
        self.bides: set[str] = set()
        """Jobs that wait for such slots."""
        self.reserved_for: str | None = None
        """Id of the gang that has the reservation."""

    def classes(self) -> list[tuple[int, list[JobFacts]]]:
        """Effective priority -> its jobs in order, highest priority first."""
        by_rank: dict[int, list[JobFacts]] = {}
        for job in self.jobs.values():
            by_rank.setdefault(effective_rank(job), []).append(job)
        return sorted(by_rank.items())

    def start(self, job: JobFacts) -> None:
        """Give a job its first slots, or arrange that they are returned to it."""
        places = self._places(job)
        chosen = self._fitting(job, places)
        if chosen:
            self._grant(job, chosen)
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
        for slot_id in way.place & self.free.keys():  # a gang's: later jobs must not take them meanwhile
            del self.free[slot_id]

    def keep(self, job: JobFacts) -> None:
        """Keep the free slots that a job can start on from the jobs behind it; no slot where they are too few."""
        for slot in self._fitting(job, self._places(job)):
            del self.free[slot.id]

    def share_free(self, members: Iterable[JobFacts]) -> None:
        """Give each free slot to the job of this priority that holds the fewest slots and can use another."""
        hungry = [job for job in members if self._room(job) > 0]
        while self.free and hungry:
            job = min(hungry, key=lambda job: (self.staying[job.id], job.created_at, job.id))
            self._grant(job, self._choose(job, self.online))
            hungry = [job for job in hungry if self._room(job) > 0]

    def ask_back(self, members: Iterable[JobFacts]) -> None:
        """Ask lower priorities for slots that jobs of this priority could still use."""
        for job in members:
            short = self._room(job) - self.promised.get(job.id, 0)
            if short <= 0:
                continue
            on_the_way = min(short, len(self.coming))
            del self.coming[:on_the_way]
            victims = elastic_victims(job, self._holders(), own_class=False)
            self._ask(victims[: short - on_the_way])

    def decisions(self) -> Decisions:
        """The decisions, with a reason for each job without slots."""
        waiting = [job for job in self.jobs.values() if not self.held[job.id]]
        return Decisions(
            grants=tuple(self.grants),
            yields=tuple(self.yields),
            explanations={job.id: self._explain(job, place) for place, job in enumerate(waiting, start=1)},
        )

    # -- steps

    def _places(self, job: JobFacts) -> list[frozenset[str]]:
        """The sets of slots within one of which a job must find all that it starts with."""
        places = [self.online] if job.gang_size == 1 else [pool for pool in self.pools if len(pool) >= job.gang_size]
        return [place - self.barred for place in places] if not job.elastic and self.barred else places

    def _fitting(self, job: JobFacts, places: Sequence[frozenset[str]]) -> list[SlotFacts]:
        """The free slots that a job can start on at once; none where too few are free together."""
        fitting = [place for place in places if len(place & self.free.keys()) >= job.gang_size]
        if not fitting:
            return []
        return self._choose(job, min(fitting, key=lambda place: (len(place & self.free.keys()), sorted(place))))

    def _way(
        self,
        job: JobFacts,
        place: frozenset[str],
        victims: Sequence[LeaseFacts],
        *,
        even_fresh: bool = False,
    ) -> _Way | None:
        """How to free the slots that a job lacks in this group; None if some of them cannot be freed."""
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

    def _num_in_the_way(self, job: JobFacts, place: frozenset[str]) -> int:
        """How many slots held by trainings a gang would wait for in this group."""
        num_elastic = sum(
            lease.slot_id in place and (holder := self.jobs.get(lease.job_id)) is not None and holder.elastic
            for lease in self.victims
        )
        num_coming = sum(slot_id in place for slot_id in self.coming)
        return job.gang_size - len(place & self.free.keys()) - num_coming - num_elastic

    def _holders(self) -> Holders:
        return Holders(self.jobs, self.online, self.victims, self.held, self.staying, self.now)

    def _room(self, job: JobFacts) -> int:
        """Number of further slots that an elastic job can use."""
        if not job.elastic or not is_ready(job, self.now):
            return 0
        by_chunks = self.working[job.id] + job.pending_chunks - self.staying[job.id]
        by_limit = (len(self.online) if job.max_slots is None else job.max_slots) - self.held[job.id]
        return min(by_chunks, by_limit, len(self.online) - self.staying[job.id])

    def _choose(self, job: JobFacts, place: frozenset[str]) -> list[SlotFacts]:
        """The best free slots of a group for a job: warm ones, then the fullest host; a gang avoids warm ones."""
        free_on = Counter(slot.host for slot in self.free.values())

        def cost(slot: SlotFacts) -> tuple[bool, int, int, str]:
            cold = job.elastic and job.model_key not in slot.warm_models
            return cold, free_on[slot.host], len(slot.warm_models), slot.id

        return sorted((slot for slot in self.free.values() if slot.id in place), key=cost)[: job.gang_size]

    def _grant(self, job: JobFacts, chosen: Sequence[SlotFacts]) -> None:
        for slot in chosen:
            del self.free[slot.id]
        self.held[job.id] += len(chosen)
        self.staying[job.id] += len(chosen)
        self.grants.append(Grant(job_id=job.id, slot_ids=tuple(slot.id for slot in chosen)))

    def _ask(self, leases: Sequence[LeaseFacts]) -> None:
        for lease in leases:
            self.yields.append(lease.id)
            self.victims.remove(lease)
            self.staying[lease.job_id] -= 1
            self.working[lease.job_id] -= lease.working

    def _explain(self, job: JobFacts, place: int) -> str:
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
