"""Which leases the plainly written policy takes back for a job (`reference_policy`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.specs.inference import Priority
from scheduler.policy.preemption import HOLD_SECONDS, MOST_PREEMPTIONS
from scheduler.policy.shares import MOST_ASKS
from scheduler.policy.types import JobFacts, LeaseFacts, effective_rank, order
from tests.support.reference_projects import Projects


@dataclass(frozen=True, slots=True)
class Holders:
    """The leases that each job holds at one moment of a decision."""

    jobs: Mapping[str, JobFacts]
    leases: Sequence[LeaseFacts]
    """Leases that were not asked to yield yet, by id."""
    held: Counter[str]
    """Live leases by job id."""
    staying: Counter[str]
    """The leases of `held` that were not asked to yield yet."""
    shares: Mapping[str, int]
    """Project -> slots that each of its jobs of the priority whose turn it is may keep."""
    projects: Projects
    now: float

    def shared(self) -> Counter[str]:
        """Job id -> slots that it holds beyond those that it is entitled to."""
        return Counter({job_id: number - self.jobs[job_id].entitled for job_id, number in self.staying.items()
                        if job_id in self.jobs})  # fmt: skip


def elastic_candidates(
    job: JobFacts, holders: Holders, place: frozenset[str], *, same_priority: bool, even_fresh: bool = False
) -> list[LeaseFacts]:
    """Leases of elastic jobs that may be asked to yield to a job, cheapest first.

    Args:
        place: Ids of the slots that the job would use.
        same_priority: Whether jobs of the same priority are asked too.
        even_fresh: Whether to include leases of that priority that were not held for `HOLD_SECONDS` yet.
    """
    rank = effective_rank(job)
    lower: list[tuple[LeaseFacts, JobFacts]] = []
    younger: list[tuple[LeaseFacts, JobFacts]] = []
    equal: list[tuple[LeaseFacts, JobFacts]] = []
    for lease in holders.leases:
        holder = holders.jobs.get(lease.job_id)
        if holder is None or not holder.elastic or holder.id == job.id or lease.slot_id not in place:
            continue
        if effective_rank(holder) > rank:
            lower.append((lease, holder))
        elif (
            same_priority
            and holder.project == job.project
            and effective_rank(holder) == rank
            and (even_fresh or holders.now - lease.granted_at >= HOLD_SECONDS)
        ):
            takes_all = not job.elastic and order(holder) > order(job)
            if not takes_all:
                equal.append((lease, holder))
            elif not holder.entitled:
                younger.append((lease, holder))
    return [
        *(lease for lease, _ in sorted(lower, key=_by_job, reverse=True)),
        *(lease for lease, _ in sorted(younger, key=_by_job, reverse=True)),
        *_beyond(equal, holders, kept=1 if job.gang_size > 1 else holders.shares[job.project]),
        *(of_other_projects(job, holders, place, even_fresh=even_fresh) if same_priority else ()),
    ]


def to_promised(job: JobFacts, holders: Holders, place: frozenset[str]) -> list[LeaseFacts]:
    """Leases of the job's priority to which no promise entitles their jobs, also the last one of a job."""
    equal = [
        (lease, holder)
        for lease in holders.leases
        if (holder := holders.jobs.get(lease.job_id)) is not None
        and holder.elastic
        and holder.id != job.id
        and effective_rank(holder) == effective_rank(job)
        and lease.slot_id in place
        and holders.now - lease.granted_at >= HOLD_SECONDS
    ]
    return _beyond(equal, holders, kept=0)


def of_other_projects(
    job: JobFacts, holders: Holders, place: frozenset[str], *, even_fresh: bool = False
) -> list[LeaseFacts]:
    """Leases of the job's priority that its project may ask of projects with a larger measure."""
    if holders.projects.num_asked >= MOST_ASKS:
        return []
    left = [
        (lease, holder)
        for lease in holders.leases
        if (holder := holders.jobs.get(lease.job_id)) is not None
        and holder.elastic
        and holder.project != job.project
        and effective_rank(holder) == effective_rank(job)
        and lease.slot_id in place
        and (even_fresh or holders.now - lease.granted_at >= HOLD_SECONDS)
    ]
    shared = holders.shared()
    num_given: Counter[str] = Counter()
    selected: list[LeaseFacts] = []
    while left := [pair for pair in left if shared[pair[1].id] > 0]:
        project = min(
            {holder.project for _, holder in left},
            key=lambda name: (-holders.projects.measure(name, -num_given[name]), name),
        )
        num_taken = max(job.gang_size, len(selected) + 1)
        if not holders.projects.may_take(job.project, num_taken, project, num_given[project] + 1):
            left = [pair for pair in left if pair[1].project != project]
            continue
        lease, holder = max(
            (pair for pair in left if pair[1].project == project),
            key=lambda pair: (shared[pair[1].id], order(pair[1]), pair[0].granted_at, pair[0].id),
        )
        left.remove((lease, holder))
        shared[holder.id] -= 1
        num_given[project] += 1
        selected.append(lease)
    return selected


def preempted(
    job: JobFacts,
    holders: Holders,
    place: frozenset[str],
    num_slots: int,
    *,
    even_fresh: bool = False,
) -> list[list[LeaseFacts]]:
    """Trainings of lower priority that together free enough slots of a group, each with all of its leases.

    Args:
        even_fresh: Include trainings that have not had their slots for the minimum time yet.

    Returns:
        Lowest priority first, then the latest grant first; empty if there are not enough of them.
    """
    if job.rank != Priority.HIGH.rank:
        return []
    gangs: dict[str, list[LeaseFacts]] = {}
    for lease in holders.leases:
        gangs.setdefault(lease.job_id, []).append(lease)
    candidates = [
        gang
        for job_id, gang in gangs.items()
        if (holder := holders.jobs.get(job_id)) is not None
        and not holder.elastic
        and effective_rank(holder) > effective_rank(job)
        and holder.num_preemptions < MOST_PREEMPTIONS
        and len(gang) == holders.held[job_id]  # otherwise the job is ending
        and (even_fresh or holders.now - max(lease.granted_at for lease in gang) >= holder.preemptable_seconds)
        and _num_within(gang, place)
    ]
    candidates.sort(
        key=lambda gang: (effective_rank(holders.jobs[gang[0].job_id]), gang[0].granted_at, gang[0].job_id),
        reverse=True,
    )
    selected: list[list[LeaseFacts]] = []
    for gang in candidates:
        if num_slots <= 0:
            break
        selected.append(gang)
        num_slots -= _num_within(gang, place)
    if num_slots > 0:
        return []
    for gang in reversed(selected[:-1]):  # the last one may free so many slots that an earlier one is not needed
        if num_slots + _num_within(gang, place) <= 0:
            num_slots += _num_within(gang, place)
            selected.remove(gang)
    return selected


def _num_within(gang: Sequence[LeaseFacts], place: frozenset[str]) -> int:
    return sum(lease.slot_id in place for lease in gang)


def _by_job(pair: tuple[LeaseFacts, JobFacts]) -> tuple[int, float, str, float, str]:
    """Sort key for reversed order: lowest priority first, then the youngest job, then its youngest lease."""
    lease, holder = pair
    return *order(holder), lease.granted_at, lease.id


def _beyond(candidates: list[tuple[LeaseFacts, JobFacts]], holders: Holders, *, kept: int) -> list[LeaseFacts]:
    """Leases beyond those that each job keeps, starting with the job that holds the most."""
    shared = holders.shared()
    left = sorted(candidates, key=lambda pair: (pair[0].granted_at, pair[0].id), reverse=True)
    selected: list[LeaseFacts] = []
    while left:
        pair = max(left, key=lambda pair: (shared[pair[1].id], pair[1].created_at, pair[1].id))
        if shared[pair[1].id] <= kept:
            break
        shared[pair[1].id] -= 1
        selected.append(pair[0])
        left.remove(pair)
    return selected
