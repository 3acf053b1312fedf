"""The scheduling policy under thousands of simulated clusters: what must hold whatever is submitted, and when."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.policy import Decisions, JobView, LeaseView, SlotView, decide


@dataclass
class Work:
    """A job of the simulated cluster."""

    view: JobView
    arrives: int
    chunks: int
    chunk_ticks: int
    done: int = 0
    claimed: int = 0
    started: bool = False

    @property
    def finished(self) -> bool:
        return self.done >= self.chunks


@dataclass
class Held:
    """A live lease of the simulated cluster."""

    lease: LeaseView
    left: int = 0  # ticks until its chunk is done; 0: none claimed
    yield_asked: bool = False


@dataclass
class Cluster:
    """Slots, jobs and leases moving in ticks of one second; every decision is checked as it is made."""

    slots: list[SlotView]
    works: list[Work]
    now: int = 0
    held: list[Held] = field(default_factory=list)
    num_leases: int = 0

    def run(self, max_ticks: int) -> None:
        while any(not work.finished for work in self.works):
            assert self.now < max_ticks, "a job never finishes"
            self.tick()

    def tick(self) -> None:
        jobs, leases = self.views()
        decisions = decide(jobs, self.slots, leases, float(self.now))
        shuffler = random.Random(self.now)
        again = [list(items) for items in (jobs, self.slots, leases)]
        for items in again:
            shuffler.shuffle(items)
        assert decide(*again, float(self.now)) == decisions, "the order of what is told changed the decision"
        self.check(jobs, leases, decisions)
        for grant in decisions.grants:
            for slot_id in grant.slot_ids:
                self.num_leases += 1
                view = LeaseView(f"l{self.num_leases:05}", grant.job_id, slot_id, float(self.now), working=False)
                self.held.append(Held(view))
        asked = set(decisions.yields)
        for held in self.held:
            held.yield_asked = held.yield_asked or held.lease.id in asked
        self.work()
        self.now += 1

    def views(self) -> tuple[list[JobView], list[LeaseView]]:
        jobs = [
            JobView(
                **{
                    **{name: getattr(work.view, name) for name in work.view.__slots__},
                    "created_at": float(work.arrives),
                    "pending_chunks": work.chunks - work.done - work.claimed,
                }
            )
            for work in self.works
            if work.arrives <= self.now and not work.finished
        ]
        leases = [
            LeaseView(
                held.lease.id, held.lease.job_id, held.lease.slot_id, held.lease.granted_at,
                working=held.left > 0, ending=held.yield_asked or self.find(held.lease.job_id).finished,
            )
            for held in self.held
        ]  # fmt: skip
        return jobs, leases

    def find(self, job_id: str) -> Work:
        return next(work for work in self.works if work.view.id == job_id)

    def check(self, jobs: list[JobView], leases: list[LeaseView], decisions: Decisions) -> None:
        by_id = {job.id: job for job in jobs}
        occupied = [lease.slot_id for lease in leases] + [slot for grant in decisions.grants for slot in grant.slot_ids]
        assert len(occupied) == len(set(occupied)), "a slot was given twice"
        assert set(occupied) <= {slot.id for slot in self.slots}
        gained: Counter[str] = Counter()
        for grant in decisions.grants:
            job = by_id[grant.job_id]
            assert len(grant.slot_ids) == job.gang_size, "a gang is granted all or none"
            gained[job.id] += len(grant.slot_ids)
        live = {lease.id: lease for lease in leases}
        assert len(decisions.yields) == len(set(decisions.yields))
        for lease_id in decisions.yields:
            assert not live[lease_id].ending, "a lease was asked twice"
            assert by_id[live[lease_id].job_id].elastic, "only an elastic job yields"
        holding = Counter(lease.job_id for lease in leases)
        unserved = []
        for job in jobs:
            total = holding[job.id] + gained[job.id]
            assert job.max_slots is None or total <= max(job.max_slots, holding[job.id])
            if job.elastic:
                working = sum(lease.working and not lease.ending for lease in leases if lease.job_id == job.id)
                staying = sum(not lease.ending for lease in leases if lease.job_id == job.id)
                room = working + job.pending_chunks - staying - gained[job.id]
                if job.pending_chunks and room > 0 and (job.max_slots is None or total < job.max_slots):
                    unserved.append(job)
            assert total or job.id in decisions.explanations, "a job that waits is told why"
        best_unserved = min((job.rank for job in unserved), default=99)
        for grant in decisions.grants:
            assert by_id[grant.job_id].rank <= best_unserved, "a higher class comes first"
        num_free = len(self.slots) - len(occupied)
        coming = any(lease.ending for lease in leases) or bool(decisions.yields)
        gathering = any(not job.elastic and not holding[job.id] and not gained[job.id] for job in jobs)
        assert not (num_free and unserved) or (gathering and coming), "a slot idles while a chunk is pending"

    def work(self) -> None:
        for held in list(self.held):
            work = self.find(held.lease.job_id)
            if held.left > 0:
                held.left -= 1
                if held.left == 0:
                    work.claimed -= 1
                    work.done += 1
            if held.left == 0:
                elastic = work.view.elastic
                pending = work.chunks - work.done - work.claimed
                if (elastic and (held.yield_asked or pending == 0)) or work.finished:
                    self.held.remove(held)
                elif pending > 0:
                    held.left = work.chunk_ticks
                    work.claimed += 1
        for work in self.works:
            assert 0 <= work.done + work.claimed <= work.chunks


@st.composite
def clusters(draw: st.DrawFn, *, gangs: bool = True) -> Cluster:
    slots = [
        SlotView(f"{host}{number}", host, tuple(draw(st.sets(st.sampled_from("xyz"), max_size=2))))
        for host in "ab"[: draw(st.integers(1, 2))]
        for number in range(draw(st.integers(1, 4)))
    ]
    works = []
    for number in range(draw(st.integers(1, 9))):
        is_gang = gangs and draw(st.integers(0, 3)) == 0
        size = draw(st.integers(1, len(slots))) if is_gang else 1
        view = JobView(
            f"j{number}", draw(st.integers(0, 2)), 0.0, elastic=not is_gang, gang_size=size,
            max_slots=None if is_gang else draw(st.none() | st.integers(1, 4)),
            model_key=draw(st.sampled_from("xyz")),
        )  # fmt: skip
        chunks = size * draw(st.integers(1, 3)) if is_gang else draw(st.integers(1, 30))
        works.append(Work(view, draw(st.integers(0, 40)), chunks, draw(st.integers(1, 15))))
    return Cluster(slots, works)


@settings(max_examples=150, deadline=None)
@given(clusters())
def test_any_mix_of_jobs_is_served_rightly_and_finishes(cluster: Cluster) -> None:
    """Else two jobs would fight over a slot, a gang would start in halves, slots would idle, or a job wait for ever."""
    cluster.run(max_ticks=60 + sum(work.chunks * work.chunk_ticks + 2 * work.chunk_ticks + 5 for work in cluster.works))


@settings(max_examples=100, deadline=None)
@given(clusters(gangs=False), st.integers(1, 15))
def test_a_high_job_starts_within_one_chunk_of_the_others(cluster: Cluster, chunk_ticks: int) -> None:
    """Else someone who pays for `high` would wait for a whole bulk job to finish."""
    for work in cluster.works:
        work.view = JobView(**{**{name: getattr(work.view, name) for name in work.view.__slots__}, "rank": 2})
        work.chunks += 50
    urgent = Work(JobView("urgent", 0, 0.0, max_slots=1), 30, 5, chunk_ticks)
    cluster.works.append(urgent)
    longest = max(work.chunk_ticks for work in cluster.works)
    while cluster.now <= 30 + longest + 2:
        cluster.tick()
    assert urgent.finished or any(held.lease.job_id == "urgent" for held in cluster.held)
