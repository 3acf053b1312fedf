"""Decide which job gets which slots: a pure function of jobs, slots, leases and the time.

The rules, in order of precedence:

1. Priorities are strict: a slot goes to the highest priority that can use it. A job that finds no free slot asks leases
   of elastic jobs of lower priority to yield, never more than it needs. A job that has waited for `AGED_SECONDS` counts
   as one priority higher until it holds no slot again.
2. Within a priority, every job gets its first slots before any job grows: first those of the project with the smallest
   measure (`shares`: what it holds and has used lately, for its weight), and in a project the older jobs, then by id.
3. Remaining slots are shared: each free slot goes to the project with the smallest measure, and in it to the elastic
   job that holds the fewest, up to its number of pending chunks and its `max_slots`. A project asks another of the same
   priority for slots while the other's measure is larger by a margin even after that, at most `MOST_ASKS` in one
   decision. In a project, a job without slots may ask a job of the same priority to yield the slots beyond an equal
   share, once that job has held them for `HOLD_SECONDS`, so that slots do not move back and forth. A training asks
   younger elastic jobs of its priority and project for all slots that it needs, since it cannot start with fewer; a
   gang also asks older ones for all but one each. A slot that was asked back is kept for the job for which it was
   asked: among jobs of one priority, those for which slots are returned are served first, with these slots. Trainings
   cannot be asked back: those of a project hold no more slots than it is guaranteed, if it is guaranteed any.
   The slots that a job is entitled to by a promise come before others of its priority start, and outside all shares.
   A job that has a slot gets another one where it must load its model only while it still takes `LOADING_FACTOR` times
   as long as that on the slots that it has; it asks for no such slot either. If a time is unknown, it gets the slot.
4. A gang gets all of its slots at once or none; they are of one host and one kind of device. While some slots are being
   returned to it, the free slots of that host are kept for it. The first gang that must wait for trainings to end has a
   reservation: the slots of one host that it can have the earliest, by upper bounds of the time for which they are
   still used. A training of the same or a lower priority starts on them only if its own upper bound ends before that
   time, so that the gang is never delayed. Elastic jobs use those slots meanwhile, since they return them after one
   chunk. Later gangs have no reservation. A training whose backoff ends within `BRIEF_SECONDS` keeps the free slots
   that it can start on, since another training would hold them for hours.
5. A job of priority `high` that cannot start otherwise preempts trainings of lower priority, but only if that frees all
   the slots that it needs; elastic leases go before trainings, and a gang goes as a whole. Each training keeps its
   slots for a minimum time and is preempted a limited number of times (`preemption`), so that it finishes eventually.
   While a job waits for that minimum time, no later training starts on those slots, so that the time does not start
   over.
6. A job only gets slots that have what it needs (`jobs.specs.needs`); other slots do not exist for it.
7. Among free slots, those with the model already loaded come first, then those that have the least beyond what the job
   needs, which leaves scarce ones to jobs that need them (`SlotFacts.scarcity`), then those of the fullest host (which
   leaves room for gangs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from scheduler.policy.decision_table import DecisionTable
from scheduler.policy.types import Decisions, JobFacts, LeaseFacts, ProjectFacts, SlotFacts, effective_rank


def decide(
    jobs: Sequence[JobFacts],
    slots: Sequence[SlotFacts],
    leases: Sequence[LeaseFacts],
    now: float,
    projects: Mapping[str, ProjectFacts] | None = None,
) -> Decisions:
    """Decide which job gets which slots. Equal input gives equal decisions, in whatever order it is passed.

    Args:
        jobs: All queued or running jobs that might get a slot; jobs known only by their leases may be missing.
        slots: All online slots.
        leases: All live leases.
        now: Unix seconds of the database's clock.
        projects: What projects are entitled to, by name; those that are missing have weight 1 and no history.

    Returns:
        Grants in the order to carry them out, leases to ask back, and why jobs wait.
    """
    table = DecisionTable(jobs, slots, leases, now, projects or {})
    for rank, turn in groupby(table.jobs.values(), key=effective_rank):
        members = list(turn)
        table.holders.begin_turn(rank, members)
        table.serve_first(members)
        table.keep_promises(members)
        table.share(members)
        table.ask_back(members)
    return table.decisions()
