"""A cluster in simulated time around the real scheduling policy: jobs arrive, load models, compute, yield and end.

There is no database and no device. A training runs for a time that it does not tell; the policy learns an upper bound
once it has done 2 % (its time x 1.1), or from its time limit. A bulk job is a number of chunks; a slot that has not
loaded its model loads it first, and yields between two chunks. The policy knows how long both take, unless it is told
not to.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from math import ceil

from scheduler.policy.decide import decide
from scheduler.policy.types import JobFacts, LeaseFacts, ProjectFacts, SlotFacts

CHUNK_SECONDS = 10.0
YIELD_SECONDS = 1.0
_KNOWN_SHARE = 0.02  # of a training, after which its speed is known
_MARGIN = 1.1
_RANKS = ("high", "normal", "low")


@dataclass
class SimulatedJob:
    """A job as it is; the policy sees only what a scheduler would know."""

    name: str
    arrives: float
    rank: int
    project: str = ""
    size: int = 0
    """Slots of a training; 0 for a bulk job."""
    seconds: float = 0.0
    """How long a training runs."""
    has_limit: bool = False
    """Whether the training has a time limit, of twice its time."""
    num_chunks: int = 0
    num_claimed: int = 0
    num_done: int = 0
    started: float | None = None
    ended: float | None = None

    @property
    def kind(self) -> str:
        return f"{_RANKS[self.rank]}, {f'training of {self.size}' if self.size else 'bulk'}"


@dataclass
class Measured:
    """What a simulation shows."""

    hours: float = 0.0
    utilisation: float = 0.0
    """Share of the time of all slots in which a lease held them."""
    loading: float = 0.0
    """Share of the leases' time in which models were loaded."""
    yields_an_hour: float = 0.0
    pass_ms: float = 0.0
    """Median of the decisions."""
    slowest_pass_ms: float = 0.0
    waits: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    """Kind of job -> number of jobs that started, and median and 95th percentile of their waits in minutes."""
    num_waiting: int = 0
    """Jobs that had not started at the end."""
    completion: float = 0.0
    """Mean minutes from the arrival of a job to its end, of the jobs that ended."""
    shares: dict[str, float] = field(default_factory=dict)
    """Project -> its share of the time of all leases."""


class SimulatedCluster:
    """The cluster; `run` goes on until a simulated or a real time limit."""

    def __init__(
        self,
        jobs: list[SimulatedJob],
        *,
        num_slots: int,
        projects: dict[str, ProjectFacts] | None = None,
        loading_seconds: float = 20.0,
        is_loading_known: bool = True,
    ) -> None:
        """
        Args:
            loading_seconds: Time in which a slot loads a model.
            is_loading_known: Whether the policy knows that time.
        """
        self._loading_time = loading_seconds
        self._known_loading = {"": loading_seconds} if is_loading_known else {}
        self._jobs = {job.name: job for job in jobs}
        self._live: dict[str, SimulatedJob] = {}
        self._slots = [SlotFacts(f"s{number:04}", f"host{number // 8:03}") for number in range(num_slots)]
        self._projects = projects or {}
        self._warm: dict[str, str] = {}
        self._kept: dict[str, str] = {}
        self._leases: dict[str, LeaseFacts] = {}
        self._events: list[tuple[float, int, str, str]] = []
        self._ids = itertools.count()
        self._now = 0.0
        self._held_seconds: Counter[str] = Counter()
        self._loading_seconds = 0.0
        self._num_yields = 0
        self._passes: list[float] = []
        for job in jobs:
            self._at(job.arrives, "arrives", job.name)

    def run(self, *, hours: float, seconds: float) -> Measured:
        """Run for so many simulated hours, or until so many real seconds have passed."""
        stop = time.monotonic() + seconds
        while self._events and self._now < hours * 3600 and time.monotonic() < stop:
            self._advance()
            self._decide()
        return self._measured()

    # -- events

    def _at(self, when: float, what: str, of: str) -> None:
        heapq.heappush(self._events, (when, next(self._ids), what, of))

    def _advance(self) -> None:
        """Handle the next event, and those of the same second, after which one decision is made."""
        until = self._events[0][0] + 1.0
        while self._events and self._events[0][0] <= until:
            self._now, _, what, of = heapq.heappop(self._events)
            if what == "arrives":
                self._live[of] = self._jobs[of]
            elif what == "training ends":
                self._end_training(of)
            elif of in self._leases:
                self._after_chunk(of)

    def _after_chunk(self, lease_id: str) -> None:
        """A lease is through with a chunk, or with loading: it takes the next chunk, yields, or ends."""
        lease = self._leases[lease_id]
        job = self._jobs[lease.job_id]
        if lease.working:
            job.num_done += 1
            if job.num_done == job.num_chunks:
                job.ended = self._now
                self._live.pop(job.name, None)
        if lease.ending or job.num_claimed == job.num_chunks:
            self._end_lease(lease_id)
            return
        job.num_claimed += 1
        self._leases[lease_id] = replace(lease, working=True)
        self._at(self._now + CHUNK_SECONDS, "chunk ends", lease_id)

    def _end_training(self, name: str) -> None:
        self._jobs[name].ended = self._now
        self._live.pop(name, None)
        for lease in [lease for lease in self._leases.values() if lease.job_id == name]:
            self._end_lease(lease.id)

    def _end_lease(self, lease_id: str) -> None:
        lease = self._leases.pop(lease_id)
        self._held_seconds[self._jobs[lease.job_id].project] += int(self._now - lease.granted_at)
        if lease.yield_for is not None:
            self._kept[lease.slot_id] = lease.yield_for

    # -- decisions

    def _decide(self) -> None:
        jobs = [self._facts(job) for job in self._live.values()]
        slots = [
            replace(slot, warm_models=(self._warm.get(slot.id, ""),), kept_for=self._kept.get(slot.id))
            for slot in self._slots
        ]
        begun = time.perf_counter()
        decisions = decide(jobs, slots, list(self._leases.values()), self._now, self._projects)
        self._passes.append((time.perf_counter() - begun) * 1000)
        for lease_id, job_id in decisions.yields.items():
            self._num_yields += 1
            self._leases[lease_id] = replace(self._leases[lease_id], ending=True, yield_for=job_id)
        for grant in decisions.grants:
            self._start(self._jobs[grant.job_id], grant.slot_ids)

    def _start(self, job: SimulatedJob, slot_ids: tuple[str, ...]) -> None:
        if job.started is None:
            job.started = self._now
        if job.size:
            self._at(self._now + job.seconds, "training ends", job.name)
        for slot_id in slot_ids:
            self._kept.pop(slot_id, None)
            lease_id = f"lease{next(self._ids):08}"
            self._leases[lease_id] = LeaseFacts(lease_id, job.name, slot_id, self._now, working=bool(job.size))
            if not job.size:
                loading = 0.0 if self._warm.get(slot_id) == job.name else self._loading_time
                self._loading_seconds += loading
                self._at(self._now + loading + YIELD_SECONDS, "loaded", lease_id)
            self._warm[slot_id] = job.name

    def _facts(self, job: SimulatedJob) -> JobFacts:
        remaining = None
        if job.size and job.started is not None and self._now - job.started >= _KNOWN_SHARE * job.seconds:
            remaining = (job.seconds - (self._now - job.started)) * _MARGIN
        elif job.size and job.has_limit:
            remaining = 2 * job.seconds - (0.0 if job.started is None else self._now - job.started)
        return JobFacts(
            job.name,
            job.rank,
            job.arrives,
            waited_seconds=(self._now if job.started is None else job.started) - job.arrives,
            elastic=not job.size,
            gang_size=job.size or 1,
            pending_chunks=job.num_chunks - job.num_claimed,
            model_key=job.name,
            num_preemptions=9,  # preempted trainings would need checkpoints, which are not simulated
            remaining_seconds=remaining,
            project=job.project,
            work_seconds=(job.num_chunks - job.num_done) * CHUNK_SECONDS,
            loading_seconds=self._known_loading,
        )

    # -- results

    def _measured(self) -> Measured:
        for lease_id in list(self._leases):
            self._end_lease(lease_id)
        waits: dict[str, list[float]] = defaultdict(list)
        for job in self._jobs.values():
            if job.started is not None:
                waits[job.kind].append((job.started - job.arrives) / 60)
        held = self._held_seconds.total()
        completions = [(job.ended - job.arrives) / 60 for job in self._jobs.values() if job.ended is not None]
        return Measured(
            hours=self._now / 3600,
            utilisation=held / (len(self._slots) * self._now),
            loading=self._loading_seconds / held,
            yields_an_hour=self._num_yields / (self._now / 3600),
            pass_ms=statistics.median(self._passes),
            slowest_pass_ms=max(self._passes),
            waits={
                kind: (len(found), statistics.median(found), sorted(found)[ceil(0.95 * len(found)) - 1])
                for kind, found in sorted(waits.items())
            },
            completion=statistics.fmean(completions) if completions else 0.0,
            num_waiting=sum(job.started is None and job.arrives <= self._now for job in self._jobs.values()),
            shares={project: seconds / held for project, seconds in sorted(self._held_seconds.items())},
        )
