"""Fair share between projects: one measure of what a project holds and has used, for its weight."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf

from scheduler.policy.types import JobFacts, LeaseFacts, ProjectFacts

MARGIN = 1.05
"""A project asks another for a slot only if the other's measure is larger by this factor even after that."""
MOST_ASKS = 8
"""Most leases that projects ask of each other in one decision."""


class Shares:
    """What each project holds during a decision."""

    def __init__(
        self, jobs: Mapping[str, JobFacts], leases: Iterable[LeaseFacts], projects: Mapping[str, ProjectFacts]
    ) -> None:
        self.are_many = len({job.project for job in jobs.values()}) > 1
        self.num_asked = 0
        """Number of leases that were asked for jobs of another project."""
        self._num_given = 0
        self._measures: dict[str, float] = {}
        """The measures that were computed since the project's last change."""
        self._projects = projects
        self._held = Counter(
            jobs[lease.job_id].project for lease in leases if lease.job_id in jobs and not lease.ending
        )
        self._in_trainings = Counter(
            jobs[lease.job_id].project for lease in leases if lease.job_id in jobs and not jobs[lease.job_id].elastic
        )

    @property
    def version(self) -> int:
        """Changes whenever a project gets a slot, so that others may ask it for more, as long as they may ask."""
        return self._num_given if self.are_many and self.num_asked < MOST_ASKS else 0

    def measure(self, project: str, num_more: int = 0) -> float:
        """Slots that a project holds and has used lately, divided by its weight; 0 up to its guaranteed slots.

        Args:
            num_more: Number of slots that it would hold in addition; may be negative.
        """
        if num_more == 0:
            if project not in self._measures:
                self._measures[project] = self._measure(project, 0)
            return self._measures[project]
        return self._measure(project, num_more)

    def _measure(self, project: str, num_more: int) -> float:
        facts = self._facts(project)
        num_held = self._held[project] + num_more
        if facts.is_exhausted:
            return inf
        if facts.slots is not None and num_held <= facts.slots:
            return 0.0
        return (num_held + facts.used) / facts.weight if facts.weight else inf

    def may_take(self, taker: str, num_taken: int, giver: str, num_given: int) -> bool:
        """Whether a project may ask another for its `num_given`-th slot so that it holds `num_taken` more."""
        after = self.measure(giver, -num_given)
        return after > 0 and self.measure(taker, num_taken) < inf and after >= MARGIN * self.measure(taker, num_taken)

    def may_ask(self, job: JobFacts) -> bool:
        """Whether a job's project may ask some other project for the slots that the job starts with."""
        if not self.are_many or self.num_asked >= MOST_ASKS:
            return False
        largest = max((self.measure(project) for project in self._held), default=0.0)
        return largest >= MARGIN * self.measure(job.project, job.gang_size)

    def give(self, job: JobFacts, num_slots: int) -> None:
        """Account for slots that a job gets or is assigned."""
        self._held[job.project] += num_slots
        self._measures.pop(job.project, None)
        if not job.elastic:
            self._in_trainings[job.project] += num_slots
        self._num_given += num_slots

    def take(self, job: JobFacts) -> None:
        """Account for a slot that a job is asked for."""
        self._held[job.project] -= 1
        self._measures.pop(job.project, None)

    def refuses(self, job: JobFacts) -> bool:
        """Whether a job's project may hold no more slots with it."""
        return self.is_exhausted(job) or self.is_full(job)

    def is_exhausted(self, job: JobFacts) -> bool:
        """Whether the job's project has used its GPU hours."""
        return self._facts(job.project).is_exhausted

    def is_full(self, job: JobFacts) -> bool:
        """Whether a training would exceed the slots of its project, which trainings may not borrow."""
        slots = self._facts(job.project).slots
        return not job.elastic and slots is not None and self._in_trainings[job.project] + job.gang_size > slots

    def slots(self, job: JobFacts) -> int | None:
        """Number of slots that trainings of the job's project may hold."""
        return self._facts(job.project).slots

    def turns(self, members: Sequence[JobFacts]) -> Iterator[JobFacts]:
        """The jobs of a priority: each time the next one of the project with the smallest measure."""
        left = by_project(members)
        positions = {project: queue[0][0] for project, queue in left.items()}
        while positions:
            project = self.next_project(positions)
            yield left[project].popleft()[1]
            if left[project]:
                positions[project] = left[project][0][0]
            else:
                del positions[project]

    def next_project(self, positions: Mapping[str, int]) -> str:
        """The project with the smallest measure; of several, the first by position, then by name.

        Args:
            positions: Project -> position of what it would get next.
        """
        if len(positions) == 1:
            return next(iter(positions))
        return min(positions, key=lambda name: (self.measure(name), positions[name], name))

    def _facts(self, project: str) -> ProjectFacts:
        return self._projects.get(project, _DEFAULT)


_DEFAULT = ProjectFacts()


def by_project(members: Iterable[JobFacts]) -> dict[str, deque[tuple[int, JobFacts]]]:
    """Project -> its jobs in their order, each with its position among all."""
    found: dict[str, deque[tuple[int, JobFacts]]] = {}
    for number, job in enumerate(members):
        found.setdefault(job.project, deque()).append((number, job))
    return found
