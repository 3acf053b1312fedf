"""What the projects of the queue are entitled to and have used, for the policy."""

from __future__ import annotations

from sqlmodel import Session

from jobs.config.limits import Limits, limits_of
from jobs.ledger.accounts.project_use import Use, is_exhausted, uses
from scheduler.policy.types import ProjectFacts


def project_facts(session: Session, projects: set[str], limits: Limits, now: float) -> dict[str, ProjectFacts]:
    """The facts of each of these projects by its name.

    Nothing is read where it would decide nothing: for one project without limits.
    """
    if len(projects) < 2 and all(limits_of(project, limits).gpu_hours is None for project in projects):
        found: dict[str, Use] = {}
    else:
        found = uses(session, now)
    facts = {}
    for project in sorted(projects):
        limit, use = limits_of(project, limits), found.get(project, Use())
        facts[project] = ProjectFacts(
            limit.weight, use.num_slots, limit.slots, is_exhausted=is_exhausted(use, limit.gpu_hours)
        )
    return facts
