"""What projects hold and may hold, for the plainly written policy (`reference_policy`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from scheduler.policy.shares import MARGIN
from scheduler.policy.types import JobFacts, ProjectFacts, effective_rank


@dataclass
class Projects:
    """The slots of projects at one moment of a decision."""

    known: Mapping[str, ProjectFacts]
    is_one: bool
    """Whether all jobs belong to one project."""
    held: Counter[str]
    in_trainings: Counter[str]
    num_asked: int = 0
    """Leases that were asked for jobs of other projects."""

    def facts(self, project: str) -> ProjectFacts:
        return self.known.get(project, ProjectFacts())

    def measure(self, project: str, num_more: int = 0) -> float:
        facts = self.facts(project)
        num_held = self.held[project] + num_more
        if facts.is_exhausted:
            return inf
        if facts.slots is not None and num_held <= facts.slots:
            return 0.0
        return inf if facts.weight == 0 else (num_held + facts.used) / facts.weight

    def may_take(self, taker: str, num_taken: int, giver: str, num_given: int) -> bool:
        taken, given = self.measure(taker, num_taken), self.measure(giver, -num_given)
        return given > 0 and taken < inf and given >= MARGIN * taken

    def refuses(self, job: JobFacts) -> bool:
        facts = self.facts(job.project)
        is_full = facts.slots is not None and self.in_trainings[job.project] + job.gang_size > facts.slots
        return facts.is_exhausted or (not job.elastic and is_full)

    def give(self, job: JobFacts) -> None:
        self.held[job.project] += 1
        self.in_trainings[job.project] += not job.elastic

    def ask(self, holder: JobFacts, asker: JobFacts) -> None:
        self.held[holder.project] -= 1
        self.num_asked += holder.project != asker.project and effective_rank(holder) == effective_rank(asker)
        self.give(asker)
