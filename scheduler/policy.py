"""Pure scheduling: from jobs, slots, leases and the time to grants, yields and a reason for each job that waits.

The rules, in the order in which they bind:

1. Classes are strict: nothing is given to a lower class while a higher one can use it, and a job that finds no free
   slot asks leases of elastic jobs of lower classes to yield, never more of them than it needs. A job that waited for
   `AGED_SECONDS` counts one class up until it holds nothing again.
2. Within a class every job gets its first slots before any job grows: by age, then by id.
3. What is left is shared: each free slot goes to the elastic job of the class that holds the fewest, up to what its
   pending chunks and its `max_slots` allow. A job that holds nothing may ask a job of its own class to yield what that
   one holds beyond an equal share, once it has held it for `HOLD_SECONDS`, so that slots do not go to and fro.
4. A gang gets all of its slots at once or none. While slots are on their way back to it, the free ones are kept for it;
   a gang that would have to wait for jobs that cannot yield keeps nothing, and others may start (greedy skip).
5. Among free slots, one that holds the model loaded comes first, then the fullest host (which keeps room for gangs).

The full policy grows behind the same signature: reservations from time limits (EASY backfill) are a longer rule 4, fair
share between projects a further key in `_order`, preemption of running gangs more victims in `_victims`; each needs
more fields in the views and none in the call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.leases import Grant

AGED_SECONDS = 24 * 3600.0
"""A job that waited this long counts as one class higher."""
HOLD_SECONDS = 10.0
"""A lease is not asked to yield to its own class before it was held for this long."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A queued or running job."""

    id: str
    rank: int
    """Its class; 0 is served first."""
    created_at: float
    """Unix seconds."""
    waited_seconds: float = 0.0
    """How long it has waited for its first slot; for a job that holds slots, how long it had waited for the oldest."""
    elastic: bool = True
    """Whether any number of slots serves it and each can be taken back at a chunk boundary."""
    gang_size: int = 1
    """Slots it needs at once; 1 for an elastic job."""
    max_slots: int | None = None
    """Most slots an elastic job may hold."""
    pending_chunks: int = 0
    """Chunks that could be claimed now; counting on beyond the number of slots changes nothing."""
    model_key: str = ""
    """Equal to a slot's warm model where that slot need not load it."""
    not_before: float = 0.0
    """Unix seconds before which it gets nothing (backoff)."""


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot that is online."""

    id: str
    host: str
    warm_models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaseView:
    """A live lease. Its slot may be missing from the slots (offline) and its job from the jobs (ending)."""

    id: str
    job_id: str
    slot_id: str
    granted_at: float
    """Unix seconds."""
    working: bool = True
    """Whether its holder has claimed a chunk; a fresh lease has not, and will take one of the pending ones."""
    ending: bool = False
    """Whether it was asked to yield already, or its job is over: its slot comes back by itself."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What to do now."""

    grants: tuple[Grant, ...] = ()
    """In the order of importance. A gang is one grant; each slot of an elastic job is a grant of its own."""
    yields: tuple[str, ...] = ()
    """Leases to ask back."""
    explanations: Mapping[str, str] = field(default_factory=dict)
    """Why each job that holds nothing still waits, by job id."""


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
            if not table.held[job.id] and table.is_ready(job):
                table.start(job)
        table.share_free(members)
        table.ask_back(members)
    return table.decisions()


def _effective_rank(job: JobView) -> int:
    return max(0, job.rank - 1) if job.waited_seconds > AGED_SECONDS else job.rank


def _order(job: JobView) -> tuple[int, float, str]:
    return _effective_rank(job), job.created_at, job.id


class _Table:
    """The slots on the table during one decision: what is free, what is on its way back, what was decided."""

    def __init__(
        self, jobs: Sequence[JobView], slots: Sequence[SlotView], leases: Sequence[LeaseView], now: float
    ) -> None:
        self.now = now
        self.jobs = {job.id: job for job in sorted(jobs, key=_order)}
        self.leases = sorted(leases, key=lambda lease: lease.id)
        online = {slot.id for slot in slots}
        taken = {lease.slot_id for lease in leases}
        self.num_slots = len(online)
        self.free = {slot.id: slot for slot in sorted(slots, key=lambda slot: slot.id) if slot.id not in taken}
        self.held = Counter(lease.job_id for lease in leases)  # live leases, those on their way back included
        self.staying = Counter(lease.job_id for lease in leases if not lease.ending)
        self.working = Counter(lease.job_id for lease in leases if lease.working and not lease.ending)
        self.victims = [lease for lease in self.leases if not lease.ending and lease.slot_id in online]
        self.coming = sum(lease.ending and lease.slot_id in online for lease in leases)  # not yet promised to anyone
        self.grants: list[Grant] = []
        self.yields: list[str] = []
        self.promised: dict[str, int] = {}

    def classes(self) -> list[tuple[int, list[JobView]]]:
        """Effective rank and its jobs in order, the first served class first."""
        by_rank: dict[int, list[JobView]] = {}
        for job in self.jobs.values():
            by_rank.setdefault(_effective_rank(job), []).append(job)
        return sorted(by_rank.items())

    def is_ready(self, job: JobView) -> bool:
        """Whether the job could use a slot now."""
        return job.not_before <= self.now and (job.pending_chunks > 0 or not job.elastic)

    def start(self, job: JobView) -> None:
        """Give a job that holds nothing its first slots, or see to it that they come back."""
        short = job.gang_size - len(self.free)
        if short <= 0:
            self._grant(job, self._choose(job))
            return
        on_the_way = min(short, self.coming)
        victims = self._victims(job, own_class=True)[: short - on_the_way]
        if on_the_way + len(victims) < short:
            return
        self.coming -= on_the_way
        self._ask(victims)
        self.promised[job.id] = short
        self.free.clear()  # a gang's; nobody behind it may take them while the others are on their way

    def share_free(self, members: Iterable[JobView]) -> None:
        """Give each free slot to the job of the class that holds the fewest and can use one more."""
        hungry = [job for job in members if self._room(job) > 0]
        while self.free and hungry:
            job = min(hungry, key=lambda job: (self.staying[job.id], job.created_at, job.id))
            self._grant(job, self._choose(job))
            hungry = [job for job in hungry if self._room(job) > 0]

    def ask_back(self, members: Iterable[JobView]) -> None:
        """Ask lower classes for the slots that the jobs of this class could still use."""
        for job in members:
            short = self._room(job) - self.promised.get(job.id, 0)
            if short <= 0:
                continue
            on_the_way = min(short, self.coming)
            self.coming -= on_the_way
            self._ask(self._victims(job, own_class=False)[: short - on_the_way])

    def decisions(self) -> Decisions:
        """All that was decided, with a reason for each job that holds nothing."""
        waiting = [job for job in self.jobs.values() if not self.held[job.id]]
        return Decisions(
            grants=tuple(self.grants),
            yields=tuple(self.yields),
            explanations={job.id: self._explain(job, place) for place, job in enumerate(waiting, start=1)},
        )

    # -- steps

    def _room(self, job: JobView) -> int:
        """How many more slots an elastic job can use."""
        if not job.elastic or not self.is_ready(job):
            return 0
        by_chunks = self.working[job.id] + job.pending_chunks - self.staying[job.id]
        by_limit = (self.num_slots if job.max_slots is None else job.max_slots) - self.held[job.id]
        return min(by_chunks, by_limit, self.num_slots - self.staying[job.id])

    def _choose(self, job: JobView) -> list[SlotView]:
        """The best free slots for a job: one host if it fits, warm ones, then the fullest host."""
        free_on = Counter(slot.host for slot in self.free.values())

        def cost(slot: SlotView) -> tuple[bool, bool, int, int, str]:
            fits = free_on[slot.host] >= job.gang_size
            cold = job.model_key not in slot.warm_models
            return not fits, cold, free_on[slot.host], len(slot.warm_models), slot.id

        best = min(self.free.values(), key=cost)
        if job.gang_size == 1:
            return [best]
        ordered = sorted(self.free.values(), key=lambda slot: (slot.host != best.host, *cost(slot)))
        return ordered[: job.gang_size]

    def _victims(self, job: JobView, *, own_class: bool) -> list[LeaseView]:
        """Leases that may be asked to yield to a job, the ones that hurt least first."""
        rank = _effective_rank(job)
        lower, equal = [], []
        for lease in self.victims:
            holder = self.jobs.get(lease.job_id)
            if holder is None or not holder.elastic or holder.id == job.id:
                continue
            if _effective_rank(holder) > rank:
                lower.append((lease, holder))
            elif own_class and _effective_rank(holder) == rank and self.now - lease.granted_at >= HOLD_SECONDS:
                equal.append((lease, holder))
        # The lowest class first, in it the youngest job, of a job the youngest lease.
        lower.sort(key=lambda pair: (*_order(pair[1]), pair[0].granted_at, pair[0].id), reverse=True)
        return [lease for lease, _ in lower] + self._beyond_share(equal, rank)

    def _beyond_share(self, candidates: list[tuple[LeaseView, JobView]], rank: int) -> list[LeaseView]:
        """Of one class's leases those beyond an equal share, from the job that holds the most first."""
        above = sum(self.held[job.id] for job in self.jobs.values() if _effective_rank(job) < rank)
        members = [job for job in self.jobs.values() if _effective_rank(job) == rank]
        num_sharing = sum(1 for job in members if self.held[job.id] or self.is_ready(job))
        share = -(-max(1, self.num_slots - above) // max(1, num_sharing))
        staying = Counter(self.staying)
        left = sorted(candidates, key=lambda pair: (pair[0].granted_at, pair[0].id), reverse=True)
        chosen: list[LeaseView] = []
        while left:
            pair = max(left, key=lambda pair: (staying[pair[1].id], pair[1].created_at, pair[1].id))
            if staying[pair[1].id] <= share:
                break
            staying[pair[1].id] -= 1
            chosen.append(pair[0])
            left.remove(pair)
        return chosen

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
        if job.not_before > self.now:
            return f"backs off for another {job.not_before - self.now:.0f} s after a failure"
        if job.elastic and job.pending_chunks == 0:
            return "its chunks back off after a failure"
        if self.num_slots == 0:
            return "no slot is online"
        if job.id in self.promised:
            return f"next: {_count(self.promised[job.id], 'slot')} on the way back from other jobs"
        if job.gang_size > self.num_slots:
            return f"needs {job.gang_size} slots at once; {self.num_slots} are online"
        if job.gang_size > 1:
            return f"needs {job.gang_size} slots at once; {len(self.free)} are free"
        busy = "the only slot is" if self.num_slots == 1 else f"all {self.num_slots} slots are"
        return f"number {place} in the queue; {busy} busy with jobs before it"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
