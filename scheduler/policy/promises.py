"""What promises change in the policy's input: whose turn it is among promised jobs, and how many slots each needs.

Promised jobs of one priority and project exchange their places in the queue, so that the one that is due first comes
first; they pass no other job by that. A promised bulk job is entitled to as many slots as it needs to be done in time,
and no more, within what its project may have; the one that is due first has the first claim. A promised training cannot
grow: once it must start to be done in time, it sorts first in its priority.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from scheduler.policy.types import JobFacts, ProjectFacts

MARGIN = 1.1
"""Promised work is counted as this many times its upper bound."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise that was admitted."""

    project: str
    at: float
    """When the job must be done, Unix seconds."""
    slot_seconds: float
    """Upper bound of the work that is left."""


def with_promises(
    jobs: Iterable[JobFacts], promises: Mapping[str, Promise], now: float, *, shares: Mapping[str, int]
) -> tuple[JobFacts, ...]:
    """The jobs as the policy must see them, so that promises are kept.

    Args:
        promises: Promises by job id. One whose time has passed is broken, and changes nothing any more.
        now: Unix seconds.
        shares: Project -> number of slots that its promised jobs are entitled to together, at most.
    """
    jobs = tuple(jobs)
    groups: dict[tuple[int, str], list[JobFacts]] = {}
    changed: dict[str, JobFacts] = {}
    for job in jobs:
        promise = promises.get(job.id)
        if promise is None or promise.at <= now:
            continue
        if not job.elastic and MARGIN * promise.slot_seconds / job.gang_size >= promise.at - now:
            changed[job.id] = replace(job, created_at=0.0)  # it must start now
        else:
            groups.setdefault((job.rank, promise.project), []).append(job)
    left = dict(shares)
    for (_, project), group in sorted(groups.items()):  # the highest priority first
        places = sorted(job.created_at for job in group)
        due_first = sorted(group, key=lambda job: (promises[job.id].at, job.created_at, job.id))
        for place, job in zip(places, due_first, strict=True):
            room = left.get(project, 0)
            entitled = min(room, _needed(job, promises[job.id], now)) if job.elastic else 0
            left[project] = room - entitled
            changed[job.id] = replace(job, created_at=place, entitled=entitled)
    return tuple(changed.get(job.id, job) for job in jobs)


def project_shares(num_slots: int, projects: Mapping[str, ProjectFacts]) -> dict[str, int]:
    """Project -> number of slots that its promises may use together: its part by weight, or what it is guaranteed.

    These are the slots at which the measures of all projects are equal (`shares`) if each wants all that it can get. A
    project of weight 0 has no part beside others.

    Args:
        projects: All projects that have jobs.
    """
    total = sum(facts.weight for facts in projects.values() if not facts.is_exhausted)
    return {
        project: 0 if facts.is_exhausted else _share(facts, num_slots, total, len(projects))
        for project, facts in projects.items()
    }


def _share(facts: ProjectFacts, num_slots: int, total: float, num_projects: int) -> int:
    if total > 0:
        by_weight = max(1, int(num_slots * facts.weight / total)) if facts.weight else 0
    else:
        by_weight = max(1, num_slots // num_projects)
    return max(by_weight, min(facts.slots or 0, num_slots))


def _needed(job: JobFacts, promise: Promise, now: float) -> int:
    """Number of slots on which an elastic job is done in time."""
    needed = math.ceil(MARGIN * promise.slot_seconds / (promise.at - now))
    return needed if job.max_slots is None else min(needed, job.max_slots)
