"""Choose leases to take back for a job: from elastic jobs and, for a job of priority `high`, from trainings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.specs.inference import Priority
from scheduler.policy.types import JobFacts, LeaseFacts, effective_rank, is_ready, order

HOLD_SECONDS = 10.0
"""A lease is not asked to yield to a job of its own priority before it was held for this long."""
MOST_PREEMPTIONS = 3
"""A training that was preempted this often is not preempted again."""


@dataclass(frozen=True, slots=True)
class Holders:
    """The leases that each job holds at one moment of a decision."""

    jobs: Mapping[str, JobFacts]
    online: frozenset[str]
    """Ids of the slots that a yield frees."""
    leases: Sequence[LeaseFacts]
    """Leases that were not asked to yield yet, by id."""
    held: Counter[str]
    """Live leases by job id."""
    staying: Counter[str]
    """The leases of `held` that were not asked to yield yet."""
    now: float


def elastic_victims(job: JobFacts, holders: Holders, *, own_class: bool) -> list[LeaseFacts]:
    """Leases of elastic jobs that may be asked to yield to a job, cheapest first.

    Args:
        own_class: Whether jobs of the same priority are asked too.
    """
    rank = effective_rank(job)
    lower: list[tuple[LeaseFacts, JobFacts]] = []
    younger: list[tuple[LeaseFacts, JobFacts]] = []
    equal: list[tuple[LeaseFacts, JobFacts]] = []
    for lease in holders.leases:
        holder = holders.jobs.get(lease.job_id)
        if holder is None or not holder.elastic or holder.id == job.id or lease.slot_id not in holders.online:
            continue
        if effective_rank(holder) > rank:
            lower.append((lease, holder))
        elif own_class and effective_rank(holder) == rank and holders.now - lease.granted_at >= HOLD_SECONDS:
            takes_all = not job.elastic and order(holder) > order(job)
            (younger if takes_all else equal).append((lease, holder))
    return [
        *(lease for lease, _ in sorted(lower, key=_by_job, reverse=True)),
        *(lease for lease, _ in sorted(younger, key=_by_job, reverse=True)),
        *_beyond_share(equal, rank, holders),
    ]


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
    chosen: list[list[LeaseFacts]] = []
    for gang in candidates:
        if num_slots <= 0:
            break
        chosen.append(gang)
        num_slots -= _num_within(gang, place)
    if num_slots > 0:
        return []
    for gang in reversed(chosen[:-1]):  # the last one may free so many slots that an earlier one is not needed
        if num_slots + _num_within(gang, place) <= 0:
            num_slots += _num_within(gang, place)
            chosen.remove(gang)
    return chosen


def _num_within(gang: Sequence[LeaseFacts], place: frozenset[str]) -> int:
    return sum(lease.slot_id in place for lease in gang)


def _by_job(pair: tuple[LeaseFacts, JobFacts]) -> tuple[int, float, str, float, str]:
    """Sort key for reversed order: lowest priority first, then the youngest job, then its youngest lease."""
    lease, holder = pair
    return *order(holder), lease.granted_at, lease.id


def _beyond_share(candidates: list[tuple[LeaseFacts, JobFacts]], rank: int, holders: Holders) -> list[LeaseFacts]:
    """Leases of one priority beyond an equal share, starting with the job that holds the most."""
    above = sum(holders.held[job.id] for job in holders.jobs.values() if effective_rank(job) < rank)
    members = [job for job in holders.jobs.values() if effective_rank(job) == rank]
    num_sharing = sum(1 for job in members if holders.held[job.id] or is_ready(job, holders.now))
    share = -(-max(1, len(holders.online) - above) // max(1, num_sharing))
    staying = Counter(holders.staying)
    left = sorted(candidates, key=lambda pair: (pair[0].granted_at, pair[0].id), reverse=True)
    chosen: list[LeaseFacts] = []
    while left:
        pair = max(left, key=lambda pair: (staying[pair[1].id], pair[1].created_at, pair[1].id))
        if staying[pair[1].id] <= share:
            break
        staying[pair[1].id] -= 1
        chosen.append(pair[0])
        left.remove(pair)
    return chosen
