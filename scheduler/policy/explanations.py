"""Say in one sentence why a job waits, by what was decided about it and about the jobs before it."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime

from jobs.messages import counted
from jobs.specs.needs import Needs
from scheduler.policy.shares import Shares
from scheduler.policy.slot_table import Slots
from scheduler.policy.types import JobFacts, Reservation


@dataclass(frozen=True, slots=True)
class Explainer:
    """What the sentences are made from."""

    now: float
    slots: Slots
    shares: Shares
    assigned: Mapping[str, int]
    """Job id -> number of slots that others return to it."""
    waits_for_minimum: Set[str]
    """Ids of the jobs that wait until trainings may be preempted."""
    reservation: Reservation | None
    most_free: dict[Needs, int]
    """Needs -> most slots that are free for a gang at once; filled as it is needed."""

    def explain(self, job: JobFacts, number: int) -> str:
        """Why a job waits that has this number in the queue."""
        num_slots = len(self.slots.usable(job))
        if job.not_before > self.now:
            return f"retries in {job.not_before - self.now:.0f} s after a failure"
        if job.elastic and job.pending_chunks == 0:
            return "retries its chunks soon after a failure"
        if not self.slots.online:
            return "no slot is online"
        if num_slots == 0:
            return f"no slot that is online has what it needs: {job.needs}"
        if self.shares.is_exhausted(job):
            return "its project has used its GPU hours of this month"
        if self.shares.is_full(job):
            return f"its project's trainings may hold {counted(self.shares.slots(job) or 0, 'slot')} at once"
        if job.id in self.assigned:
            return f"next: waits for {counted(self.assigned[job.id], 'slot')} that other jobs return"
        if job.id in self.waits_for_minimum:
            return f"next: preempts a training once that has had its slots for {job.preemptable_seconds:g} s"
        if job.gang_size > 1:
            return self._explain_gang(job, number)
        which = f" with {job.needs}" if num_slots < len(self.slots.online) else ""
        busy = f"the only slot{which} is" if num_slots == 1 else f"all {num_slots} slots{which} are"
        return f"number {number} in the queue; {busy} busy with jobs before it"

    def _explain_gang(self, job: JobFacts, number: int) -> str:
        needs = f"needs {job.gang_size} slots of one host at once"
        largest = max(map(len, self.slots.pools(job)))
        if job.gang_size > largest:
            return f"{needs}; the largest host has {largest} online"
        if self.reservation is not None and job.id == self.reservation.job_id:
            turn = "next" if number == 1 else f"number {number} in the queue"
            return f"{turn}: {needs}; they are reserved for it {until(self.reservation)}"
        if job.needs not in self.most_free:
            free = self.slots.free.ids
            self.most_free[job.needs] = max(len(pool & free) for pool in self.slots.pools(job))
        return f"{needs}; at most {counted(self.most_free[job.needs], 'is', 'are')} free on one host"


def until(reservation: Reservation) -> str:
    """When a gang gets the slots that are reserved for it."""
    if reservation.at is None:
        return "as the jobs on them end"
    return f"and free by {datetime.fromtimestamp(reservation.at, UTC):%Y-%m-%d %H:%M} UTC at the latest"
