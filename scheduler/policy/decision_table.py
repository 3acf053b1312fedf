"""The state of one decision of the policy, and its steps; `decide` has the rules and their order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heapreplace
from itertools import islice

from jobs.ledger.leasing.grants import Grant
from jobs.specs.needs import Needs
from scheduler.policy.explanations import Explainer
from scheduler.policy.growth import Growth
from scheduler.policy.preemption import Holders
from scheduler.policy.reservations import reserve
from scheduler.policy.shares import by_project
from scheduler.policy.slot_table import Slots
from scheduler.policy.types import (
    Decisions,
    JobFacts,
    LeaseFacts,
    ProjectFacts,
    Reservation,
    SlotFacts,
    is_ready,
    is_soon_ready,
    order,
)
from scheduler.policy.ways import Ways


class DecisionTable:
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
        self.holders = Holders(self.jobs, leases, frozenset(slot.id for slot in slots), now, projects)
        self.slots = Slots(slots, {lease.slot_id for lease in leases}, self.holders)
        self.ways = Ways(self.slots, self.holders)
        self.growth = Growth(self.slots, self.holders)
        self.grants: list[Grant] = []
        self.yields: dict[str, str] = {}
        self.assigned: dict[str, int] = {}
        """Job id -> number of slots that the job waits for and that others return for it."""
        self.waits_for_minimum: set[str] = set()
        """Ids of the jobs that wait until trainings may be preempted. No other training starts there meanwhile."""
        self.reservation: Reservation | None = None
        self.needs_before: set[Needs] = set()
        """Packages of the jobs that could use slots and come before the job whose turn it is."""
        self.kept: dict[str, list[str]] = {}
        """Job id -> slots that were returned for it and are free."""
        for slot_id in sorted(self.slots.free.ids):
            if (job_id := self.slots.free.by_id[slot_id].kept_for) is not None:
                self.kept.setdefault(job_id, []).append(slot_id)

    def serve_first(self, members: Iterable[JobFacts]) -> None:
        """Give the slots that are returned for jobs of this priority to these jobs before all others."""
        first = [
            job
            for job in members
            if self._is_awaited(job)
            and is_ready(job, self.now)
            and not self.holders.shares.refuses(job)
            and (job.id not in self.holders.held or self.holders.shares.are_many)
        ]
        self.ways.served_first = {job.id for job in first}
        for job in first:
            if job.id in self.holders.held:
                self._grow(job)
            elif (own := self._own(job)) and job.gang_size == 1:
                self._grant(job, own[:1])
                if self.holders.shares.are_many:
                    self._grow(job)
            else:
                self._begin(job)
        self.ways.served_first = set()

    def start(self, job: JobFacts) -> None:
        """Give a job its first slots, or arrange that they are returned to it."""
        if self.ways.is_refused(job, even_fresh=True) or self._begin(job):
            return
        if later := self.ways.find(job, even_fresh=True):
            self.slots.bar(later.group.slot_ids)
            self.waits_for_minimum.add(job.id)
        elif job.gang_size > 1 and self.reservation is None:
            self._reserve(job)
        if max(map(len, self.slots.pools(job)), default=0) >= job.gang_size:
            self.needs_before.add(job.needs)

    def keep_promises(self, members: Iterable[JobFacts]) -> None:
        """Give promised jobs the slots that they are entitled to, or ask others of their priority for them."""
        for job in members:
            if not job.entitled or self.holders.shares.refuses(job):
                continue
            lacking = min(job.entitled - self.holders.staying[job.id], self._room(job)) - self.assigned.get(job.id, 0)
            while lacking > 0 and (slot_ids := self._fitting(job)):
                self._grant(job, slot_ids)
                lacking -= 1
            if lacking > 0:
                takeable = self.slots.groups(job)[0].takeable
                coming = list(islice(takeable.coming.values(), lacking))
                for lease in coming:
                    self.holders.assign(job, lease)
                asked = list(islice(self.holders.for_promise(job, takeable), lacking - len(coming)))
                self._ask(job, asked)
                self._note_assigned(job, len(coming) + len(asked))

    def keep(self, job: JobFacts) -> None:
        """Keep the free slots that a job can start on from the jobs behind it; no slot where they are too few."""
        self._take(job, self._fitting(job))

    def share(self, members: Sequence[JobFacts]) -> None:
        """Serve the projects in turns, the one with the smallest measure first each time.

        A project starts its jobs in their order. When it has no other job to start, each of its turns gives one free
        slot to that of its jobs that holds the fewest and can use another.
        """
        starting = by_project(members)
        growing: dict[str, list[tuple[int, int, JobFacts]]] = {}
        positions = {project: queue[0][0] for project, queue in starting.items()}
        while positions:
            project = self.holders.shares.next_project(positions)
            if project in growing:
                if not self._give_free(growing[project]):
                    del positions[project]
                continue
            queue = starting[project]
            self._serve(queue.popleft()[1])
            if queue:
                positions[project] = queue[0][0]
            else:
                positions[project] = len(members)
                growing[project] = self._growable(project, members)

    def _serve(self, job: JobFacts) -> None:
        if job.id in self.holders.held or job.id in self.assigned or self.holders.shares.refuses(job):
            return
        if is_ready(job, self.now):
            self.start(job)
        elif is_soon_ready(job, self.now):
            self.keep(job)

    def _growable(self, project: str, members: Iterable[JobFacts]) -> list[tuple[int, int, JobFacts]]:
        """A heap of the jobs of a project that can use another slot: first the one that holds the fewest."""
        if not self.slots.free.ids:
            return []
        growable = [
            (self.holders.staying[job.id], number, job)
            for number, job in enumerate(members)
            if job.project == project and self._room(job) > 0
        ]
        heapify(growable)
        return growable

    def _give_free(self, growable: list[tuple[int, int, JobFacts]]) -> bool:
        """Give one free slot to one of these jobs; False if none can use any."""
        while self.slots.free.ids and growable:
            _, number, job = growable[0]
            group, _ = self.growth.slots(job)
            slot_ids = group.best(job) if group else []
            if slot_ids:
                self._grant(job, slot_ids)
            if slot_ids and self._room(job) > 0:
                heapreplace(growable, (self.holders.staying[job.id], number, job))
            else:
                heappop(growable)
            if slot_ids:
                return True
        return False

    def ask_back(self, members: Sequence[JobFacts]) -> None:
        """Ask lower priorities, then other projects, for slots that jobs of this priority could still use."""
        shares = self.holders.shares
        exhausted: set[Needs] = set()  # needs of jobs for which nothing is left to ask of lower priorities
        lacking: dict[str, int] = {}
        for job in shares.turns(members):
            if (job.needs in exhausted and not shares.are_many) or (short := self._short(job)) <= 0:
                continue
            if self.growth.slots(job)[0] is None:
                continue
            self.needs_before.add(job.needs)
            if job.needs not in exhausted:
                short -= self._ask_lower(job, short)
            if short > 0:
                lacking[job.id] = short
                if not self.growth.is_limited(job):
                    exhausted.add(job.needs)
        if shares.are_many:
            self._ask_other_projects(members, lacking)

    def _ask_lower(self, job: JobFacts, short: int) -> int:
        """Ask lower priorities for so many slots. Returns how many the job gets."""
        num_found = 0
        while num_found < short:
            group, most = self.growth.slots(job)
            if group is None:
                break
            wanted = int(min(short - num_found, most))
            coming = list(islice(group.takeable.coming.values(), wanted))
            for lease in coming:
                self.holders.assign(job, lease)
            candidates = self.holders.elastic_candidates(job, group.takeable, same_priority=False)
            asked = list(islice(candidates, wanted - len(coming)))
            self._ask(job, asked)
            num_found += len(coming) + len(asked)
            if len(coming) + len(asked) < wanted:
                break
        return num_found

    def _ask_other_projects(self, members: Iterable[JobFacts], lacking: dict[str, int]) -> None:
        """Ask projects with a larger measure for single slots, each time for the project with the smallest measure.

        Args:
            lacking: Job id -> number of slots that it could still use.
        """
        exhausted: set[tuple[str, Needs]] = set()  # project and needs for which nothing is left to ask
        asking = by_project(job for job in members if job.id in lacking)
        while asking:
            project = self.holders.shares.next_project({name: queue[0][0] for name, queue in asking.items()})
            position, job = asking[project].popleft()
            if (project, job.needs) not in exhausted:
                group, _ = self.growth.slots(job)
                lease = None if group is None else next(self.holders.of_other_projects(job, group.takeable), None)
                if lease is None:
                    if not self.growth.is_limited(job):
                        exhausted.add((project, job.needs))
                else:
                    self._ask(job, [lease])
                    lacking[job.id] -= 1
                    if lacking[job.id]:
                        asking[project].append((position, job))
            if not asking[project]:
                del asking[project]

    def decisions(self) -> Decisions:
        """The decisions, with a reason for each job without slots."""
        waiting = [job for job in self.jobs.values() if job.id not in self.holders.held]
        explainer = Explainer(
            self.now, self.slots, self.holders.shares, self.assigned, self.waits_for_minimum, self.reservation, {}
        )
        return Decisions(
            grants=tuple(self.grants),
            yields=self.yields,
            reservation=self.reservation,
            explanations={job.id: explainer.explain(job, number) for number, job in enumerate(waiting, start=1)},
        )

    # -- steps

    def _begin(self, job: JobFacts) -> bool:
        """Start a job, or assign slots to it that others return; False if there are not enough."""
        slot_ids = self._fitting(job)
        if slot_ids:
            self._grant(job, slot_ids)
        elif way := self.ways.find(job):
            for lease in way.coming:
                self.holders.assign(job, lease)
            self._ask(job, way.yields)
            self.assigned[job.id] = way.short
            if way.group.num_free:  # a gang's: later jobs must not take them meanwhile
                self._take(job, way.group.slot_ids & self.slots.free.ids)
        return job.id in self.holders.held or job.id in self.assigned

    def _fitting(self, job: JobFacts) -> list[str]:
        """The free slots that a job can start on at once; none where too few are free together."""
        if len(self.slots.free.ids) < job.gang_size:
            return []
        fitting = [group for group in self.slots.groups(job) if group.num_free >= job.gang_size]
        return min(fitting, key=lambda group: (group.scarcity(), group.num_free)).best(job) if fitting else []

    def _own(self, job: JobFacts) -> list[str]:
        """Free slots that were returned for a job and that it can use."""
        groups = self.slots.groups(job)
        usable = groups[0].slot_ids & self.slots.free.ids if groups else frozenset[str]()
        return [slot_id for slot_id in self.kept.get(job.id, ()) if slot_id in usable]

    def _grow(self, job: JobFacts) -> None:
        """Give an elastic job the slots that were asked back for it, as many as it can use."""
        for slot_id in self._own(job):
            if self._room(job) > 0 and self.growth.may_use(job, slot_id):
                self._grant(job, [slot_id])
        usable, coming = self.slots.usable(job), self.holders.takeable.coming
        own = [lease for lease in self.ways.returning.get(job.id, ()) if lease.id in coming and lease.slot_id in usable]
        for lease in own:
            if self._short(job) > 0 and self.growth.may_use(job, lease.slot_id):
                self.holders.assign(job, lease)
                self._note_assigned(job, 1)

    def _is_awaited(self, job: JobFacts) -> bool:
        """Whether a slot that was asked back for a job is free or being returned, and not given to another job."""
        is_kept = any(slot_id in self.slots.free.ids for slot_id in self.kept.get(job.id, ()))
        return is_kept or any(lease.id in self.holders.takeable.coming for lease in self.ways.returning.get(job.id, ()))

    def _reserve(self, job: JobFacts) -> None:
        """Let no training start that could delay a gang. Its time is unknown while other jobs come before it there."""
        found = reserve(job, self.slots, self.holders)
        if found is not None:
            usable_before = (self.slots.usable_with(needs) for needs in self.needs_before)
            is_next = all(usable.isdisjoint(found.slot_ids) for usable in usable_before)
            self.reservation = found if is_next else replace(found, at=None)
            self.slots.reserve(self.reservation.slot_ids, self.reservation.at)

    def _note_assigned(self, job: JobFacts, num_slots: int) -> None:
        if num_slots:
            self.assigned[job.id] = self.assigned.get(job.id, 0) + num_slots

    def _short(self, job: JobFacts) -> int:
        """Number of slots that an elastic job can use and is not assigned."""
        return self._room(job) - self.assigned.get(job.id, 0)

    def _room(self, job: JobFacts) -> int:
        """Number of further slots that an elastic job can use."""
        if not job.elastic or not is_ready(job, self.now) or self.holders.shares.refuses(job):
            return 0
        staying = self.holders.staying[job.id]
        by_chunks = self.holders.working[job.id] + job.pending_chunks - staying
        num_usable = len(self.slots.usable(job))
        by_limit = (num_usable if job.max_slots is None else job.max_slots) - self.holders.held[job.id]
        return min(by_chunks, by_limit, num_usable - staying)

    def _grant(self, job: JobFacts, slot_ids: Sequence[str]) -> None:
        self.slots.free.take(slot_ids)
        self.holders.grant(job, slot_ids)
        self.grants.append(Grant(job_id=job.id, slot_ids=tuple(slot_ids)))

    def _take(self, job: JobFacts, slot_ids: Collection[str]) -> None:
        """Keep free slots for a job."""
        self.holders.keep(job, slot_ids)
        self.slots.free.take(slot_ids)

    def _ask(self, job: JobFacts, leases: Iterable[LeaseFacts]) -> None:
        for lease in leases:
            self.yields[lease.id] = job.id
            self.holders.ask(job, lease)
