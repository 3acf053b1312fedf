"""The scheduling policy written plainly: each step looks at all jobs, slots and leases anew.

It is slow, and it decides exactly what `scheduler.policy.decide` decides, whose rules it follows. A change of a rule
changes both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from jobs.ledger.leasing.grants import Grant
from jobs.messages import counted
from jobs.specs.needs import Needs
from scheduler.policy.explanations import until
from scheduler.policy.growth import LOADING_FACTOR
from scheduler.policy.types import (
    Decisions,
    JobFacts,
    LeaseFacts,
    ProjectFacts,
    Reservation,
    SlotFacts,
    effective_rank,
    is_ready,
    is_soon_ready,
    order,
)
from tests.support.reference_preemption import (
    Holders,
    elastic_candidates,
    of_other_projects,
    preempted,
    to_promised,
)
from tests.support.reference_projects import Projects


def decide(
    jobs: Sequence[JobFacts],
    slots: Sequence[SlotFacts],
    leases: Sequence[LeaseFacts],
    now: float,
    projects: Mapping[str, ProjectFacts] | None = None,
) -> Decisions:
    """Decide which job gets which slots. Equal input gives equal decisions, in whatever order it is passed."""
    table = _Table(jobs, slots, leases, now, projects or {})
    for _, members in table.by_priority():
        table.begin_turn(members)
        table.serve_first(members)
        table.keep_promises(members)
        table.share(members)
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
    coming: tuple[LeaseFacts, ...] = ()
    """Leases that are ending already."""
    yields: tuple[LeaseFacts, ...] = ()
    num_preempted: int = 0
    """Trainings to preempt."""

    def cost(self) -> tuple[int, int, int, list[str]]:
        """Sort key, smallest is best: few trainings preempted, few leases asked back, the fullest host."""
        return self.num_preempted, len(self.yields), self.num_free, sorted(self.place)


class _Table:
    """The state of one decision: which slots are free or being returned, and what was decided so far."""

    def __init__(
        self,
        jobs: Sequence[JobFacts],
        slots: Sequence[SlotFacts],
        leases: Sequence[LeaseFacts],
        now: float,
        projects: Mapping[str, ProjectFacts],
    ) -> None:
        self.now = now
        self.jobs = {job.id: job for job in sorted(jobs, key=order)}
        leases = sorted(leases, key=lambda lease: lease.id)
        known = [(one, self.jobs[one.job_id]) for one in leases if one.job_id in self.jobs]
        self.projects = Projects(
            projects,
            is_one=len({job.project for job in jobs}) <= 1,
            held=Counter(holder.project for one, holder in known if not one.ending),
            in_trainings=Counter(holder.project for _, holder in known if not holder.elastic),
        )
        self.shares: dict[str, int] = {}
        """Project -> slots that each of its jobs of the priority whose turn it is may keep."""
        taken = {lease.slot_id for lease in leases}
        self.slots = tuple(slots)
        self.online = frozenset(slot.id for slot in slots)
        self.usable_by_needs: dict[Needs, frozenset[str]] = {Needs(): self.online}
        """Packages -> ids of the slots whose hosts have them."""
        pools: dict[tuple[str, str], set[str]] = {}
        for slot in slots:
            pools.setdefault((slot.host, slot.kind), set()).add(slot.id)
        self.pools = [frozenset(members) for _, members in sorted(pools.items())]
        """Groups of slots that one gang may use together."""
        self.free = {slot.id: slot for slot in sorted(slots, key=lambda slot: slot.id) if slot.id not in taken}
        self.held = Counter(lease.job_id for lease in leases)  # live leases, including those being returned
        self.staying = Counter(lease.job_id for lease in leases if not lease.ending)
        self.working = Counter(lease.job_id for lease in leases if lease.working and not lease.ending)
        self.reached = Counter(self.staying)
        """Job -> slots that it kept at the start, and those that it was granted or promised since."""
        self.reclaimable = [lease for lease in leases if not lease.ending]
        self.coming = [lease for lease in leases if lease.ending and lease.slot_id in self.online]
        """Leases that are ending and whose slots are not yet promised to a job."""
        self.user = {lease.slot_id: lease.job_id for lease in leases if not lease.ending}
        """Slot -> the job that uses it or to which it was granted or promised."""
        self.served_first: set[str] = set()
        """Jobs whose own slots no other job of their priority may take now."""
        self.grants: list[Grant] = []
        self.yields: dict[str, str] = {}
        self.promised: dict[str, int] = {}
        self.barred: frozenset[str] = frozenset()
        """Slots on which no training may start, because a job waits until the trainings there may be preempted."""
        self.waits_for_minimum: set[str] = set()
        """Jobs that wait for such slots."""
        self.reservation: Reservation | None = None
        self.before: list[JobFacts] = []
        """Jobs that could use slots and come before the job whose turn it is."""

    def by_priority(self) -> list[tuple[int, list[JobFacts]]]:
        """Effective priority -> its jobs in order, highest priority first."""
        by_rank: dict[int, list[JobFacts]] = {}
        for job in self.jobs.values():
            by_rank.setdefault(effective_rank(job), []).append(job)
        return sorted(by_rank.items())

    def begin_turn(self, members: Sequence[JobFacts]) -> None:
        """Compute how many slots each job of a priority may keep."""
        rank = effective_rank(members[0])
        above = sum(self.held[job.id] for job in self.jobs.values() if effective_rank(job) < rank)
        sharing = [job for job in members if self.held[job.id] or is_ready(job, self.now)]
        for project in {job.project for job in members}:
            own = [job for job in sharing if job.project == project and not job.entitled]
            of_others = sum(self.held[job.id] for job in sharing if job not in own)
            self.shares[project] = -(-max(1, len(self.online) - above - of_others) // max(1, len(own)))

    def turns(self, members: Sequence[JobFacts]) -> Iterator[JobFacts]:
        """The jobs of a priority: each time the next one of the project with the smallest measure."""
        left = list(members)
        while left:
            job = min(left, key=lambda job: (self.projects.measure(job.project), order(job)))
            left.remove(job)
            yield job

    def serve_first(self, members: Iterable[JobFacts]) -> None:
        """Give the slots that are returned for jobs of this priority to these jobs before all others."""
        asked_for = {slot.kept_for for slot in self.free.values()} | {lease.yield_for for lease in self.coming}
        first = [
            job
            for job in members
            if job.id in asked_for
            and is_ready(job, self.now)
            and not self.projects.refuses(job)
            and (not self.held[job.id] or not self.projects.is_one)
        ]
        self.served_first = {job.id for job in first}
        for job in first:
            places = self._places(job)
            own = [slot for _, slot in sorted(self.free.items()) if slot.kept_for == job.id]
            own = [slot for slot in own if any(slot.id in place for place in places)]
            if self.held[job.id]:
                self._grow(job, own)
            elif own and job.gang_size == 1:
                self._grant(job, own[:1])
                if not self.projects.is_one:
                    self._grow(job, own[1:])
            else:
                self.begin(job)
        self.served_first = set()

    def _grow(self, job: JobFacts, own: Sequence[SlotFacts]) -> None:
        """Give an elastic job the slots that were asked back for it, as many as it can use."""
        for slot in own:
            if self._room(job) > 0 and slot.id in self._to_grow(job):
                self._grant(job, [slot])
        for lease in [lease for lease in self.coming if lease.yield_for == job.id]:
            if self._room(job) > self.promised.get(job.id, 0) and lease.slot_id in self._to_grow(job):
                self._promise(job, [lease])
                self.promised[job.id] = self.promised.get(job.id, 0) + 1

    def keep_promises(self, members: Iterable[JobFacts]) -> None:
        """Give promised jobs the slots that they are entitled to, or ask others of their priority for them."""
        for job in members:
            if not job.entitled or self.projects.refuses(job):
                continue
            lacking = min(job.entitled - self.staying[job.id], self._room(job)) - self.promised.get(job.id, 0)
            while lacking > 0 and (slots := self._fitting(job, self._places(job))):
                self._grant(job, slots)
                lacking -= 1
            if lacking > 0:
                usable = self._usable(job)
                coming = [lease for lease in self.coming if lease.slot_id in usable][:lacking]
                self._promise(job, coming)
                asked = to_promised(job, self._holders(), usable)[: lacking - len(coming)]
                self._ask(job, asked)
                if coming or asked:
                    self.promised[job.id] = self.promised.get(job.id, 0) + len(coming) + len(asked)

    def start(self, job: JobFacts) -> None:
        """Give a job its first slots, or arrange that they are returned to it."""
        if self.begin(job):
            return
        places = self._places(job)
        later = [way for place in places if (way := self._way(job, place, even_fresh=True)) is not None]
        if later:
            self.barred |= min(later, key=_Way.cost).place
            self.waits_for_minimum.add(job.id)
        elif job.gang_size > 1 and self.reservation is None:
            self._reserve(job)
        self.before.append(job)

    def begin(self, job: JobFacts) -> bool:
        """Start a job, or promise slots to it that others return; False if there are not enough."""
        places = self._places(job)
        slots = self._fitting(job, places)
        if slots:
            self._grant(job, slots)
            return True
        ways = [way for place in places if (way := self._way(job, place)) is not None]
        if not ways:
            return False
        way = min(ways, key=_Way.cost)
        self._promise(job, way.coming)
        self._ask(job, way.yields)
        self.promised[job.id] = way.short
        for slot_id in way.place & self.free.keys():  # a gang's: later jobs must not take them meanwhile
            self._take(job, slot_id)
        return True

    def keep(self, job: JobFacts) -> None:
        """Keep the free slots that a job can start on from the jobs behind it; no slot where they are too few."""
        for slot in self._fitting(job, self._places(job)):
            self._take(job, slot.id)

    def share(self, members: Sequence[JobFacts]) -> None:
        """Serve the projects in turns, the one with the smallest measure first: its next job, else one more slot."""
        starting = list(members)
        growing = {job.project for job in members}
        while growing:
            following = {name: [job for job in starting if job.project == name] for name in growing}
            project = min(
                growing,
                key=lambda name: (
                    self.projects.measure(name) if len(growing) > 1 else 0,
                    members.index(following[name][0]) if following[name] else len(members),
                    name,
                ),
            )
            if following[project]:
                job = following[project][0]
                starting.remove(job)
                if not (self.held[job.id] or job.id in self.promised or self.projects.refuses(job)):
                    if is_ready(job, self.now):
                        self.start(job)
                    elif is_soon_ready(job, self.now):
                        self.keep(job)
            elif not self._give_free([job for job in members if job.project == project]):
                growing.remove(project)

    def _give_free(self, jobs: Sequence[JobFacts]) -> bool:
        """Give one free slot to that of the jobs that holds the fewest slots and can use another."""
        hungry = [job for job in jobs if self._room(job) > 0]
        for job in sorted(hungry, key=lambda job: (self.staying[job.id], job.created_at, job.id)):
            slots = self._choose(job, self._to_grow(job))
            if slots:
                self._grant(job, slots)
                return True
        return False

    def ask_back(self, members: Sequence[JobFacts]) -> None:
        """Ask lower priorities, then other projects, for slots that jobs of this priority could still use."""
        lacking: dict[str, int] = {}
        for job in self.turns(members):
            short = self._room(job) - self.promised.get(job.id, 0)
            if short <= 0 or not self._to_grow(job):
                continue
            self.before.append(job)
            while short > 0:
                place = self._to_grow(job)
                coming = [lease for lease in self.coming if lease.slot_id in place][:1]
                asked = [] if coming else elastic_candidates(job, self._holders(), place, same_priority=False)[:1]
                self._promise(job, coming)
                self._ask(job, asked)
                if not coming and not asked:
                    break
                short -= 1
            lacking[job.id] = short
        asking = [job for job in members if lacking.get(job.id, 0) > 0]
        while asking:
            firsts = {project: next(job for job in asking if job.project == project) for project in
                      {job.project for job in asking}}  # fmt: skip
            job = min(
                firsts.values(),
                key=lambda job: (self.projects.measure(job.project), members.index(job), job.project),
            )
            place = self._to_grow(job)
            asked = of_other_projects(job, self._holders(), place)[:1]
            self._ask(job, asked)
            lacking[job.id] -= 1
            asking.remove(job)
            if asked and lacking[job.id]:
                asking.append(job)
            elif not asked and place == self._usable(job):
                asking = [one for one in asking if (one.project, one.needs) != (job.project, job.needs)]

    def decisions(self) -> Decisions:
        """The decisions, with a reason for each job without slots."""
        waiting = [job for job in self.jobs.values() if not self.held[job.id]]
        return Decisions(
            grants=tuple(self.grants),
            yields=self.yields,
            reservation=self.reservation,
            explanations={job.id: self._explain(job, place) for place, job in enumerate(waiting, start=1)},
        )

    # -- steps

    def _places(self, job: JobFacts) -> list[frozenset[str]]:
        """The sets of slots within one of which a job must find all that it starts with."""
        usable = self._usable(job)
        pools = [usable] if job.gang_size == 1 else [pool & usable for pool in self.pools]
        places = [pool for pool in pools if len(pool) >= job.gang_size]
        if job.elastic:
            return places
        reserved = () if self.reservation is None or self._may_fill(job) else self.reservation.slot_ids
        return [place - self.barred - set(reserved) for place in places]

    def _may_fill(self, job: JobFacts) -> bool:
        """Whether a training ends before the reserved slots are needed."""
        at = None if self.reservation is None else self.reservation.at
        return at is not None and job.remaining_seconds is not None and self.now + job.remaining_seconds <= at

    def _usable(self, job: JobFacts) -> frozenset[str]:
        """Ids of the online slots that have what a job needs."""
        usable = self.usable_by_needs.get(job.needs)
        if usable is None:
            usable = frozenset(slot.id for slot in self.slots if job.needs.met_by(slot))
            self.usable_by_needs[job.needs] = usable
        return usable

    def _to_grow(self, job: JobFacts) -> frozenset[str]:
        """Ids of the usable slots that have the job's model, or where it pays to load it."""
        reached = self.reached[job.id]

        def is_worth(slot: SlotFacts) -> bool:
            loading = job.loading_seconds.get(slot.kind)
            if job.model_key in slot.warm_models or loading is None or job.work_seconds is None or reached == 0:
                return True
            return job.work_seconds > LOADING_FACTOR * loading * reached

        usable = self._usable(job)
        return frozenset(slot.id for slot in self.slots if slot.id in usable and is_worth(slot))

    def _fitting(self, job: JobFacts, places: Sequence[frozenset[str]]) -> list[SlotFacts]:
        """The free slots that a job can start on at once; none where too few are free together."""
        fitting = [place for place in places if len(place & self.free.keys()) >= job.gang_size]
        if not fitting:
            return []

        def cost(place: frozenset[str]) -> tuple[tuple[int, bool, int], int, list[str]]:
            free = place & self.free.keys()
            return min(self.free[slot_id].scarcity(job.needs) for slot_id in free), len(free), sorted(place)

        return self._choose(job, min(fitting, key=cost))

    def _way(self, job: JobFacts, place: frozenset[str], *, even_fresh: bool = False) -> _Way | None:
        """How to free the slots that a job lacks in this group; None if some of them cannot be freed."""
        if len(place) < job.gang_size:
            return None
        num_free = len(place & self.free.keys())
        short = job.gang_size - num_free
        own = [lease for lease in self.coming if job.id in self.served_first and lease.yield_for == job.id]
        others = [lease for lease in self.coming if lease.yield_for not in self.served_first]
        coming = tuple(lease for lease in (*own, *others) if lease.slot_id in place)[:short]
        lacking = short - len(coming)
        elastic = elastic_candidates(job, self._holders(), place, same_priority=True)
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

    def _reserve(self, job: JobFacts) -> None:
        """Let no training start that could delay a gang. Its time is unknown while other jobs come before it there."""
        found: list[tuple[float, int, list[str], tuple[str, ...]]] = []
        for place in self._places(job):
            if len(place) >= job.gang_size:
                ends = sorted((self._end(job, place, slot_id), slot_id) for slot_id in place)[: job.gang_size]
                num_used = sum(end > self.now for end, _ in ends)
                found.append((ends[-1][0], num_used, sorted(place), tuple(slot_id for _, slot_id in ends)))
        if found:
            at, _, _, slot_ids = min(found)
            is_next = not any(
                self._usable(other) & set(slot_ids) for other in self.before if self._fits_somewhere(other)
            )
            self.reservation = Reservation(job.id, slot_ids, at if is_next and at < inf else None)

    def _end(self, job: JobFacts, place: frozenset[str], slot_id: str) -> float:
        """When a gang can have a slot of a group at the latest; infinite if that is unknown."""
        returnable = elastic_candidates(job, self._holders(), place, same_priority=True, even_fresh=True)
        if slot_id not in self.user or any(lease.slot_id == slot_id for lease in returnable):
            return self.now
        user = self.jobs.get(self.user[slot_id])
        return inf if user is None or user.remaining_seconds is None else self.now + user.remaining_seconds

    def _fits_somewhere(self, job: JobFacts) -> bool:
        pools = [self.online] if job.gang_size == 1 else self.pools
        return any(len(pool & self._usable(job)) >= job.gang_size for pool in pools)

    def _holders(self) -> Holders:
        return Holders(self.jobs, self.reclaimable, self.held, self.staying, self.shares, self.projects, self.now)

    def _room(self, job: JobFacts) -> int:
        """Number of further slots that an elastic job can use."""
        if not job.elastic or not is_ready(job, self.now) or self.projects.refuses(job):
            return 0
        by_chunks = self.working[job.id] + job.pending_chunks - self.staying[job.id]
        num_usable = len(self._usable(job))
        by_limit = (num_usable if job.max_slots is None else job.max_slots) - self.held[job.id]
        return min(by_chunks, by_limit, num_usable - self.staying[job.id])

    def _choose(self, job: JobFacts, place: frozenset[str]) -> list[SlotFacts]:
        """The best free slots of a group for a job, by rule 7; a gang avoids those with loaded models."""
        free_on = Counter(slot.host for slot in self.free.values())

        def cost(slot: SlotFacts) -> tuple[bool, tuple[int, bool, int], int, int, str]:
            cold = job.elastic and job.model_key not in slot.warm_models
            return cold, slot.scarcity(job.needs), free_on[slot.host], len(slot.warm_models), slot.id

        return sorted((slot for slot in self.free.values() if slot.id in place), key=cost)[: job.gang_size]

    def _grant(self, job: JobFacts, slots: Sequence[SlotFacts]) -> None:
        for slot in slots:
            self._take(job, slot.id)
        self.held[job.id] += len(slots)
        self.staying[job.id] += len(slots)
        self.reached[job.id] += len(slots)
        self.grants.append(Grant(job_id=job.id, slot_ids=tuple(slot.id for slot in slots)))

    def _take(self, job: JobFacts, slot_id: str) -> None:
        del self.free[slot_id]
        self.user[slot_id] = job.id
        self.projects.give(job)

    def _promise(self, job: JobFacts, leases: Sequence[LeaseFacts]) -> None:
        for lease in leases:
            self.coming.remove(lease)
            self.reached[job.id] += 1
            self.user[lease.slot_id] = job.id
            self.projects.give(job)

    def _ask(self, job: JobFacts, leases: Sequence[LeaseFacts]) -> None:
        for lease in leases:
            self.yields[lease.id] = job.id
            self.reclaimable.remove(lease)
            self.reached[job.id] += 1
            self.staying[lease.job_id] -= 1
            self.working[lease.job_id] -= lease.working
            self.user[lease.slot_id] = job.id
            self.projects.ask(self.jobs[lease.job_id], job)

    def _explain(self, job: JobFacts, place: int) -> str:
        num_slots = len(self._usable(job))
        if job.not_before > self.now:
            return f"retries in {job.not_before - self.now:.0f} s after a failure"
        if job.elastic and job.pending_chunks == 0:
            return "retries its chunks soon after a failure"
        if not self.online:
            return "no slot is online"
        if num_slots == 0:
            return f"no slot that is online has what it needs: {job.needs}"
        facts = self.projects.facts(job.project)
        if facts.is_exhausted:
            return "its project has used its GPU hours of this month"
        if self.projects.refuses(job):
            return f"its project's trainings may hold {counted(facts.slots or 0, 'slot')} at once"
        if job.id in self.promised:
            return f"next: waits for {counted(self.promised[job.id], 'slot')} that other jobs return"
        if job.id in self.waits_for_minimum:
            return f"next: preempts a training once that has had its slots for {job.preemptable_seconds:g} s"
        if job.gang_size > 1:
            needs = f"needs {job.gang_size} slots of one host at once"
            pools = [pool & self._usable(job) for pool in self.pools]
            largest = max(len(pool) for pool in pools)
            if job.gang_size > largest:
                return f"{needs}; the largest host has {largest} online"
            if self.reservation is not None and job.id == self.reservation.job_id:
                turn = "next" if place == 1 else f"number {place} in the queue"
                return f"{turn}: {needs}; they are reserved for it {until(self.reservation)}"
            most_free = max(len(pool & self.free.keys()) for pool in pools)
            return f"{needs}; at most {counted(most_free, 'is', 'are')} free on one host"
        which = f" with {job.needs}" if num_slots < len(self.online) else ""
        busy = f"the only slot{which} is" if num_slots == 1 else f"all {num_slots} slots{which} are"
        return f"number {place} in the queue; {busy} busy with jobs before it"
