"""Choose leases to take back for a job: from elastic jobs and, for a job of priority `high`, from trainings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heapreplace

from jobs.specs.inference import Priority
from scheduler.policy.shares import Shares
from scheduler.policy.takeable import Takeable
from scheduler.policy.types import JobFacts, LeaseFacts, ProjectFacts, effective_rank, is_ready

HOLD_SECONDS = 10.0
"""A lease is not asked to yield to a job of its own priority before it was held for this long."""
MOST_PREEMPTIONS = 3
"""A training that was preempted this often is not preempted again."""


class Holders:
    """The leases of all jobs during a decision, and in which order they are taken back.

    Leases that may be taken back are sorted once, at the start; each that is assigned or asked to yield is removed.
    """

    def __init__(
        self,
        jobs: dict[str, JobFacts],
        leases: Sequence[LeaseFacts],
        online: frozenset[str],
        now: float,
        projects: Mapping[str, ProjectFacts],
    ) -> None:
        """Sort the leases.

        Args:
            jobs: Jobs by id, in their order.
            leases: All live leases, in the order of their ids.
            online: Ids of the slots that are online.
        """
        self.jobs = jobs
        self.now = now
        self.num_online = len(online)
        self.shares = Shares(jobs, leases, projects)
        self.held = Counter(lease.job_id for lease in leases)
        """Live leases by job id, those that are ending too; jobs without leases are missing."""
        self.staying = Counter(lease.job_id for lease in leases if not lease.ending)
        """The leases of `held` that were not asked to yield yet."""
        self.working = Counter(lease.job_id for lease in leases if lease.working and not lease.ending)
        """The leases of `staying` that work on a chunk."""
        self.reached = Counter(self.staying)
        """Job id -> slots that it kept at the start, and those that it was granted or assigned since."""
        self.user = {lease.slot_id: lease.job_id for lease in leases if not lease.ending}
        """Slot id -> id of the job that uses the slot or to which it was granted or assigned."""
        self.position = {job_id: number for number, job_id in enumerate(jobs)}
        self.fresh: set[str] = set()
        """Ids of the trainings that a `high` job may preempt later, but have not had their minimum time yet."""
        self.takeable = Takeable()
        """The last elastic job in order comes first, and so does the latest lease of each job. The training to preempt
        first comes first."""
        self.spent: list[LeaseFacts] = []
        """Leases that were assigned or asked to yield, in that order."""
        self.share: dict[str, int] = {}
        """Project -> number of slots that each of its jobs of the priority whose turn it is may keep."""
        self.sharers: list[str] = []
        """Ids of the elastic jobs of that priority that had more than their share when the turn began."""
        self._fill(leases, online)

    def _fill(self, leases: Sequence[LeaseFacts], online: frozenset[str]) -> None:
        by_job: dict[str, list[LeaseFacts]] = {}
        for lease in leases:
            if lease.ending and lease.slot_id in online:
                self.takeable.add_coming(lease)
            elif lease.job_id in self.jobs and not lease.ending:
                by_job.setdefault(lease.job_id, []).append(lease)
        for job in reversed(self.jobs.values()):
            if job.elastic and job.id in by_job:
                for lease in sorted(by_job[job.id], key=lambda lease: (lease.granted_at, lease.id), reverse=True):
                    self.takeable.add_elastic(lease)
        gangs = [gang for job_id, gang in by_job.items() if self._is_preemptable(self.jobs[job_id], gang)]
        gangs.sort(
            key=lambda gang: (effective_rank(self.jobs[gang[0].job_id]), gang[0].granted_at, gang[0].job_id),
            reverse=True,
        )
        for gang in gangs:
            job = self.jobs[gang[0].job_id]
            if self.now - max(lease.granted_at for lease in gang) < job.preemptable_seconds:
                self.fresh.add(job.id)
            for lease in gang:
                self.takeable.add_of_training(lease)

    def begin_turn(self, rank: int, members: Sequence[JobFacts]) -> None:
        """Compute the equal share of the jobs of a priority, within the slots that their project has.

        It stays the same until the next turn: no other priority gets slots meanwhile, and a job that gets its first
        slot was ready before. Jobs with a promise have what they are entitled to, and no share.
        """
        above = sum(
            num_held
            for job_id, num_held in self.held.items()
            if job_id in self.jobs and effective_rank(self.jobs[job_id]) < rank
        )
        num_held = Counter[str]()
        num_sharing = Counter[str]()
        total = 0
        for job in members:
            if job.id in self.held or is_ready(job, self.now):
                total += self.held.get(job.id, 0)
                if not job.entitled:
                    num_sharing[job.project] += 1
                    num_held[job.project] += self.held.get(job.id, 0)
        self.share = {
            project: -(-max(1, self.num_online - above - total + num_held[project]) // number)
            for project, number in num_sharing.items()
        }
        self.sharers = [
            job_id
            for job_id in self.takeable.elastic
            if effective_rank(self.jobs[job_id]) == rank
            and self._shared(job_id) > self.share.get(self.jobs[job_id].project, 0)
        ]

    def grant(self, job: JobFacts, slot_ids: Sequence[str]) -> None:
        self.held[job.id] += len(slot_ids)
        self.staying[job.id] += len(slot_ids)
        self.reached[job.id] += len(slot_ids)
        self.user.update(dict.fromkeys(slot_ids, job.id))
        self.shares.give(job, len(slot_ids))

    def keep(self, job: JobFacts, slot_ids: Collection[str]) -> None:
        """Account for free slots that are kept for a job."""
        self.user.update(dict.fromkeys(slot_ids, job.id))
        self.shares.give(job, len(slot_ids))

    def assign(self, job: JobFacts, lease: LeaseFacts) -> None:
        """Account for a lease that is ending and whose slot a job will get."""
        self.user[lease.slot_id] = job.id
        self.reached[job.id] += 1
        self.shares.give(job, 1)
        self.takeable.drop(lease)
        self.spent.append(lease)

    def ask(self, job: JobFacts, lease: LeaseFacts) -> None:
        """Account for a lease that is asked to yield to a job."""
        self.staying[lease.job_id] -= 1
        self.working[lease.job_id] -= lease.working
        holder = self.jobs[lease.job_id]
        self.shares.take(holder)
        if holder.project != job.project and effective_rank(holder) == effective_rank(job):
            self.shares.num_asked += 1
        self.assign(job, lease)

    def elastic_candidates(
        self, job: JobFacts, among: Takeable, *, same_priority: bool, even_fresh: bool = False
    ) -> Iterator[LeaseFacts]:
        """Leases of elastic jobs that may be asked to yield to a job, cheapest first.

        Args:
            among: The leases of the slots that the job would use.
            same_priority: Whether jobs of the same priority are asked too.
            even_fresh: Whether to include leases of that priority that were not held for `HOLD_SECONDS` yet.
        """
        rank = effective_rank(job)
        takes_all_younger = same_priority and not job.elastic
        for job_id, leases in among.elastic.items():
            is_lower = effective_rank(self.jobs[job_id]) > rank
            if not is_lower and not (takes_all_younger and self.position[job_id] > self.position[job.id]):
                break
            if not is_lower and (self.jobs[job_id].project != job.project or self.jobs[job_id].entitled):
                continue
            for lease in leases.values():
                if is_lower or even_fresh or self._was_held(lease):
                    yield lease
        if same_priority:
            yield from self._beyond_share(job, among, even_fresh=even_fresh)
            yield from self.of_other_projects(job, among, even_fresh=even_fresh)

    def for_promise(self, job: JobFacts, among: Takeable) -> Iterator[LeaseFacts]:
        """Leases of the job's priority to which no promise entitles their jobs, also the last one of a job."""
        others = [job_id for job_id in self._of_priority(job, among) if job_id != job.id]
        return self._most_first(others, among, least=0, even_fresh=False)

    def _beyond_share(self, job: JobFacts, among: Takeable, *, even_fresh: bool) -> Iterator[LeaseFacts]:
        """Leases that jobs of the job's priority and project can spare, starting with the job that holds the most.

        To a gang, each older job gives all but one; to other jobs, those beyond an equal share. Of a training's
        priority, only older jobs are left here; all younger ones were candidates before.
        """
        is_gang = job.gang_size > 1
        others = [
            job_id
            for job_id in (self._of_priority(job, among) if is_gang else self.sharers)
            if job_id in among.elastic
            and self.jobs[job_id].project == job.project
            and (job.elastic or self.position[job_id] < self.position[job.id])
        ]
        least = 1 if is_gang else self.share.get(job.project, 1)
        return self._most_first(others, among, least=least, even_fresh=even_fresh)

    def _most_first(
        self, job_ids: Iterable[str], among: Takeable, *, least: int, even_fresh: bool
    ) -> Iterator[LeaseFacts]:
        """Leases that jobs hold beyond `least`, starting with the job that holds the most."""
        heap = [
            (-self._shared(job_id), -self.position[job_id], iter(among.elastic[job_id].values()))
            for job_id in job_ids
            if self._shared(job_id) > least
        ]
        heapify(heap)
        while heap and -heap[0][0] > least:
            staying, position, leases = heap[0]
            for lease in leases:
                if even_fresh or self._was_held(lease):
                    heapreplace(heap, (staying + 1, position, leases))
                    yield lease
                    break
            else:
                heappop(heap)

    def of_other_projects(self, job: JobFacts, among: Takeable, *, even_fresh: bool = False) -> Iterator[LeaseFacts]:
        """Leases of the job's priority that its project may ask of projects with a larger measure.

        The project with the largest measure gives first, and in it the job that holds the most.
        """
        if not self.shares.may_ask(job):
            return
        givers: dict[str, list[tuple[int, int, str]]] = {}
        for job_id in self._of_priority(job, among):
            project = self.jobs[job_id].project
            if project != job.project and self._shared(job_id) > 0:
                givers.setdefault(project, []).append((-self._shared(job_id), -self.position[job_id], job_id))
        for heap in givers.values():
            heapify(heap)
        leases = {job_id: iter(among.elastic[job_id].values()) for heap in givers.values() for _, _, job_id in heap}
        num_given = Counter[str]()
        while givers:
            giver = min(givers, key=lambda name: (-self.shares.measure(name, -num_given[name]), name))
            num_taken = max(job.gang_size, num_given.total() + 1)
            if not self.shares.may_take(job.project, num_taken, giver, num_given[giver] + 1):
                del givers[giver]
                continue
            staying, position, job_id = givers[giver][0]
            for lease in leases[job_id] if staying < 0 else ():
                if even_fresh or self._was_held(lease):
                    heapreplace(givers[giver], (staying + 1, position, job_id))
                    num_given[giver] += 1
                    yield lease
                    break
            else:
                heappop(givers[giver])
                if not givers[giver]:
                    del givers[giver]

    def _of_priority(self, job: JobFacts, among: Takeable) -> list[str]:
        """Ids of the elastic jobs of the job's priority that hold some of these leases."""
        return [job_id for job_id in among.elastic if effective_rank(self.jobs[job_id]) == effective_rank(job)]

    def preempted(self, job: JobFacts, among: Takeable, num_slots: int, *, even_fresh: bool) -> list[list[LeaseFacts]]:
        """Trainings that a job may preempt and that together free enough slots, each with all of its leases.

        Those of the lowest priority come first, then those with the latest grant.

        Args:
            among: The leases of the slots that the job would use.
            num_slots: Number of slots to free.
            even_fresh: Include trainings that have not had their slots for the minimum time yet.

        Returns:
            The trainings; none if they do not free enough.
        """
        if job.rank != Priority.HIGH.rank:
            return []
        selected: list[tuple[str, int]] = []
        for job_id, inside in among.trainings.items():
            if job_id in self.fresh and not even_fresh:
                continue
            selected.append((job_id, len(inside)))
            num_slots -= len(inside)
            if num_slots <= 0:
                break
        else:
            return []
        for gang in reversed(selected[:-1]):  # the last one may free so many slots that an earlier one is not needed
            if num_slots + gang[1] <= 0:
                num_slots += gang[1]
                selected.remove(gang)
        return [self.takeable.trainings[job_id] for job_id, _ in selected]

    def _shared(self, job_id: str) -> int:
        """Number of slots that a job holds beyond those that it is entitled to."""
        return self.staying[job_id] - self.jobs[job_id].entitled

    def _was_held(self, lease: LeaseFacts) -> bool:
        return self.now - lease.granted_at >= HOLD_SECONDS

    def _is_preemptable(self, job: JobFacts, gang: Sequence[LeaseFacts]) -> bool:
        """Whether a training may be preempted for a job of priority `high`, once it had its minimum time."""
        return (
            not job.elastic
            and effective_rank(job) > Priority.HIGH.rank
            and job.num_preemptions < MOST_PREEMPTIONS
            and len(gang) == self.held[job.id]  # otherwise the job is ending
        )
