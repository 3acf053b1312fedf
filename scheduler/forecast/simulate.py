"""Run the scheduling policy forward from now, without new jobs, on values of its own: nothing real changes.

Work is a fluid: a job's rows or steps are done at the sum of the speeds of its slots. A pass of the policy is made only
where something changes: a job ends, a slot comes back, or a limit of time passes that the policy knows.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from scheduler.policy.decide import decide
from scheduler.policy.preemption import HOLD_SECONDS
from scheduler.policy.types import AGED_SECONDS, JobFacts, LeaseFacts, ProjectFacts, SlotFacts

QUEUE_HEAD = 64
"""Waiting jobs of each priority that one decision looks at, beyond one for each slot."""
MOST_WORK = 400_000
"""Sum, over all passes, of the jobs, slots and leases that a pass looks at; about a second or two."""
_TOGETHER_SECONDS = 0.2  # changes that are this close lead to one pass
_STOP_SECONDS = 2.0  # for a training to stop with a checkpoint, beside its step
_UNKNOWN_CHUNK_SECONDS = 2.0
_LONGEST_CHUNK_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Work:
    """A job of a forecast: what it has left to do, and how fast it is."""

    job: JobFacts
    amount: float | None
    """Rows or steps that are left; None if unknown."""
    speeds: Mapping[str, float]
    """Rows per second of one slot, or steps per second of a training, by kind of device; empty if unknown."""
    chunk_rows: float = 1.0
    """Number of rows of a chunk; does not matter for a training."""

    @property
    def is_known(self) -> bool:
        """Whether the time that the job takes is known."""
        return self.amount is not None and bool(self.speeds)


@dataclass(slots=True)
class Simulated:
    """What happened in a run."""

    starts: dict[str, float] = field(default_factory=dict)
    """Job id -> when a job that held no slot got its first one."""
    ends: dict[str, float] = field(default_factory=dict)
    """Job id -> when it had nothing left to do."""
    slots: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """Job id -> the numbers of slots that it held, each with the time from when on."""
    until: float = math.inf
    """The run was ended here, because it had become too long; later times are unknown."""


@dataclass(slots=True)
class _Running:
    """A job during a run."""

    work: Work
    facts: JobFacts
    left: float
    """Rows or steps left at `at`; infinite for a job that never ends."""
    at: float
    num_claimable: int
    """Number of slots that an elastic job of unknown length could use in all."""
    leases: dict[str, LeaseFacts] = field(default_factory=dict)
    version: int = 0
    """Number of the present prediction of its end; older predictions are void."""


def simulate(
    works: Iterable[Work],
    slots: Sequence[SlotFacts],
    leases: Sequence[LeaseFacts],
    now: float,
    *,
    projects: Mapping[str, ProjectFacts] | None = None,
    unknown_ends: bool,
    most_work: int = MOST_WORK,
    before_pass: Callable[[], None] = lambda: None,
) -> Simulated:
    """Run the policy forward until all jobs have ended, or nothing changes any more.

    Args:
        works: All jobs that have leases or wait.
        slots: All online slots.
        leases: All live leases; those of jobs that are not in `works` end soon.
        now: Unix seconds at which the run begins.
        projects: See `decide`; what they have used stays as it is now.
        unknown_ends: Whether a job of unknown length ends as soon as it has a slot, or never.
        most_work: Most work that the run may take, see `MOST_WORK`.
        before_pass: Called before each pass; may wait, and may raise to end the run.
    """
    run = _Run(works, slots, leases, now, projects or {}, unknown_ends=unknown_ends)
    while True:
        if run.needs_pass:
            before_pass()
            most_work -= run.make_pass()
            if most_work < 0:
                run.result.until = run.now
                return run.result
        if not run.advance():
            return run.result


class _Run:
    """The state of a run. Events are kept in a heap: (time, number, what, id, version)."""

    def __init__(
        self,
        works: Iterable[Work],
        slots: Sequence[SlotFacts],
        leases: Sequence[LeaseFacts],
        now: float,
        projects: Mapping[str, ProjectFacts],
        *,
        unknown_ends: bool,
    ) -> None:
        self.now = now
        self._projects = projects
        self.result = Simulated()
        self.needs_pass = True
        self._slots = slots
        self._kept = {slot.id: slot.kept_for for slot in slots if slot.kept_for is not None}
        self._kinds = {slot.id: slot.kind for slot in slots}
        self._head = QUEUE_HEAD + len(slots)
        self._events: list[tuple[float, int, str, str, int]] = []
        self._num_events = 0
        self._num_leases = 0
        self._strangers: dict[str, LeaseFacts] = {}
        self._jobs: dict[str, _Running] = {}
        self._waiting: dict[int, list[tuple[float, str]]] = {}
        for work in works:
            unknown = 0.0 if unknown_ends else math.inf
            left = work.amount if work.is_known and work.amount is not None else unknown
            self._jobs[work.job.id] = _Running(work, work.job, left, now, work.job.pending_chunks)
        for lease in leases:
            job = self._jobs.get(lease.job_id)
            (self._strangers if job is None else job.leases)[lease.id] = lease
            if job is not None and lease.working:
                job.num_claimable += 1
            if lease.ending:
                self._return_later(lease, job)
        for job in self._jobs.values():
            for lease in job.leases.values():
                self._hold(job, lease)
            if job.leases:
                self.result.slots[job.facts.id] = [(now, len(job.leases))]
                self._predict(job)
            else:
                self._wait(job)

    # -- one pass

    def make_pass(self) -> int:
        """Let the policy decide, and carry it out. Returns how much the pass had to look at."""
        self.needs_pass = False
        jobs = [job.facts for job in self._jobs.values() if job.leases]
        for queue in self._waiting.values():
            jobs += (self._jobs[job_id].facts for _, job_id in queue[: self._head])
        leases = [*self._strangers.values(), *(one for job in self._jobs.values() for one in job.leases.values())]
        slots = [replace(slot, kept_for=self._kept.get(slot.id)) for slot in self._slots] if self._kept else self._slots
        decisions = decide(jobs, slots, leases, self.now, self._projects)
        held = {lease.id: lease for lease in leases}
        for lease_id, asker_id in decisions.yields.items():
            self._ask(held[lease_id], asker_id)
        for grant in decisions.grants:
            self._grant(self._jobs[grant.job_id], grant.slot_ids)
        return len(jobs) + len(leases) + len(self._slots)

    def _grant(self, job: _Running, slot_ids: Sequence[str]) -> None:
        self._settle(job)
        if not job.leases:
            self._waiting[job.facts.rank].remove((job.facts.created_at, job.facts.id))
            self.result.starts.setdefault(job.facts.id, self.now)
        for slot_id in slot_ids:
            self._num_leases += 1
            self._kept.pop(slot_id, None)
            lease = LeaseFacts(f"~{self._num_leases:09}", job.facts.id, slot_id, self.now)
            job.leases[lease.id] = lease
            self._hold(job, lease)
        self._changed(job)

    def _hold(self, job: _Running, lease: LeaseFacts) -> None:
        """Note when the policy may ask for a lease that it may not ask for yet."""
        hold_seconds = HOLD_SECONDS if job.facts.elastic else job.facts.preemptable_seconds
        if lease.granted_at + hold_seconds > self.now:
            self._later(lease.granted_at + hold_seconds, "held", job.facts.id)

    def _ask(self, lease: LeaseFacts, asker_id: str) -> None:
        job = self._jobs[lease.job_id]
        asked = replace(lease, ending=True, yield_for=asker_id)
        job.leases[lease.id] = asked
        self._return_later(asked, job)

    def _return_later(self, lease: LeaseFacts, job: _Running | None) -> None:
        """A lease that was asked to yield is returned after its chunk, of which half is left, or after a step."""
        speed = 0.0 if job is None else job.work.speeds.get(self._kinds.get(lease.slot_id, ""), 0.0)
        if job is None or not speed:
            seconds = _UNKNOWN_CHUNK_SECONDS
        elif job.facts.elastic:
            seconds = min(job.work.chunk_rows / speed / 2, _LONGEST_CHUNK_SECONDS)
        else:
            seconds = _STOP_SECONDS + 1 / speed
        self._later(self.now + seconds, "returned", lease.id if job is None else f"{job.facts.id} {lease.id}")

    # -- time

    def advance(self) -> bool:
        """Move on to the next event and those close to it. Returns False if there is none."""
        if not self._events:
            return False
        until = self._events[0][0] + _TOGETHER_SECONDS
        while self._events and self._events[0][0] <= until:
            at, _, what, name, version = heappop(self._events)
            self.now = max(self.now, at)
            self._happen(what, name, version)
        return True

    def _happen(self, what: str, name: str, version: int) -> None:
        match what:
            case "returned":
                job_id, _, lease_id = name.rpartition(" ")
                self._returned(self._jobs.get(job_id), lease_id)
            case "ended":
                job = self._jobs.get(name)
                if job is not None and job.version == version:
                    del self._jobs[name]
                    self._kept = {slot_id: job_id for slot_id, job_id in self._kept.items() if job_id != name}
                    self.result.ends[name] = self.now
                    self.result.slots[name].append((self.now, 0))
                    self.needs_pass = True
            case "aged":
                job = self._jobs.get(name)
                if job is not None and job.version == version and not job.leases:
                    job.facts = replace(job.facts, waited_seconds=AGED_SECONDS + 1)
                    self.needs_pass = True
            case "ready":
                self.needs_pass = True
            case _:  # held: leases may be asked back now, which matters only if a job waits
                self.needs_pass = self.needs_pass or any(self._waiting.values())

    def _returned(self, job: _Running | None, lease_id: str) -> None:
        self.needs_pass = True
        if job is None:
            self._strangers.pop(lease_id, None)
        elif lease_id in job.leases:
            self._settle(job)
            lease = job.leases.pop(lease_id)
            if lease.yield_for in self._jobs:
                self._kept[lease.slot_id] = lease.yield_for
            if not job.leases:
                preempted = job.facts.num_preemptions + (not job.facts.elastic)
                job.facts = replace(job.facts, waited_seconds=0.0, num_preemptions=preempted)
            self._changed(job)
            if not job.leases:
                self._wait(job)

    def _wait(self, job: _Running) -> None:
        insort(self._waiting.setdefault(job.facts.rank, []), (job.facts.created_at, job.facts.id))
        if job.facts.waited_seconds <= AGED_SECONDS:
            self._later(self.now + AGED_SECONDS + 1 - job.facts.waited_seconds, "aged", job.facts.id, job.version)
        if job.facts.not_before > self.now:
            self._later(job.facts.not_before, "ready", job.facts.id)

    def _settle(self, job: _Running) -> None:
        """Account for the work since the job's leases last changed."""
        job.left = max(0.0, job.left - self._speed(job) * (self.now - job.at))
        job.at = self.now

    def _changed(self, job: _Running) -> None:
        """Note the job's present number of slots, and what follows from it."""
        changes = self.result.slots.setdefault(job.facts.id, [])
        if changes and changes[-1][0] == self.now:
            changes.pop()
        changes.append((self.now, len(job.leases)))
        if job.facts.elastic:
            chunks = math.ceil(job.left / job.work.chunk_rows) if job.work.is_known else job.num_claimable
            work_seconds = job.work.job.work_seconds
            if work_seconds is not None and job.work.amount:
                work_seconds *= job.left / job.work.amount
            pending = max(0, chunks - len(job.leases))
            job.facts = replace(job.facts, pending_chunks=pending, work_seconds=work_seconds)
        self._predict(job)

    def _predict(self, job: _Running) -> None:
        job.version += 1
        speed = self._speed(job)
        if job.leases and (job.left == 0 or (speed > 0 and job.left < math.inf)):
            seconds = job.left / speed if job.left else 0.0
            self._later(self.now + seconds, "ended", job.facts.id, job.version)

    def _speed(self, job: _Running) -> float:
        """Rows or steps per second that the job does now."""
        speeds = [job.work.speeds.get(self._kinds.get(lease.slot_id, ""), 0.0) for lease in job.leases.values()]
        return sum(speeds) if job.facts.elastic else max(speeds, default=0.0)

    def _later(self, at: float, what: str, name: str, version: int = 0) -> None:
        self._num_events += 1
        heappush(self._events, (at, self._num_events, what, name, version))
