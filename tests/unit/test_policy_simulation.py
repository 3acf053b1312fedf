"""Invariants of the scheduling policy in thousands of simulated clusters with random jobs."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.specs.needs import Needs
from scheduler.policy.decide import decide
from scheduler.policy.preemption import MOST_PREEMPTIONS
from scheduler.policy.types import Decisions, JobFacts, LeaseFacts, SlotFacts, effective_rank

AV = frozenset({"av"})
PREEMPTABLE_SECONDS = JobFacts("", 0, 0.0).preemptable_seconds


@dataclass
class Work:
    """A job of the simulated cluster."""

    view: JobFacts
    arrives: int
    chunks: int
    chunk_ticks: int
    done: int = 0
    claimed: int = 0
    num_preemptions: int = 0

    @property
    def finished(self) -> bool:
        return self.done >= self.chunks


@dataclass
class Held:
    """A live lease of the simulated cluster."""

    lease: LeaseFacts
    left: int = 0  # ticks until its chunk is done; 0: none claimed
    yield_asked: bool = False


@dataclass
class Cluster:
    """Slots, jobs and leases moving in ticks; every decision is checked as it is made."""

    slots: list[SlotFacts]
    works: list[Work]
    now: int = 0
    held: list[Held] = field(default_factory=list)
    num_leases: int = 0
    tick_seconds: int = 1
    num_preempted: int = 0

    @property
    def clock(self) -> float:
        return float(self.now * self.tick_seconds)

    def run(self, max_ticks: int) -> None:
        while any(not work.finished for work in self.works):
            assert self.now < max_ticks, "a job never finishes"
            self.tick()

    def tick(self) -> None:
        jobs, leases = self.views()
        decisions = decide(jobs, self.slots, leases, self.clock)
        shuffler = random.Random(self.now)
        again = [list(items) for items in (jobs, self.slots, leases)]
        for items in again:
            shuffler.shuffle(items)
        assert decide(*again, self.clock) == decisions, "the order of what is told changed the decision"
        self.check(jobs, leases, decisions)
        for grant in decisions.grants:
            for slot_id in grant.slot_ids:
                self.num_leases += 1
                view = LeaseFacts(f"l{self.num_leases:05}", grant.job_id, slot_id, self.clock, working=False)
                self.held.append(Held(view))
        asked = set(decisions.yields)
        for held in self.held:
            held.yield_asked = held.yield_asked or held.lease.id in asked
        self.work()
        self.now += 1

    def views(self) -> tuple[list[JobFacts], list[LeaseFacts]]:
        jobs = [
            JobFacts(
                **{
                    **{name: getattr(work.view, name) for name in work.view.__slots__},
                    "created_at": float(work.arrives * self.tick_seconds),
                    "pending_chunks": work.chunks - work.done - work.claimed,
                    "num_preemptions": work.num_preemptions,
                }
            )
            for work in self.works
            if work.arrives <= self.now and not work.finished
        ]
        leases = [
            LeaseFacts(
                held.lease.id, held.lease.job_id, held.lease.slot_id, held.lease.granted_at,
                working=held.left > 0, ending=held.yield_asked or self.find(held.lease.job_id).finished,
            )
            for held in self.held
        ]  # fmt: skip
        return jobs, leases

    def find(self, job_id: str) -> Work:
        return next(work for work in self.works if work.view.id == job_id)

    def check(self, jobs: list[JobFacts], leases: list[LeaseFacts], decisions: Decisions) -> None:
        by_id = {job.id: job for job in jobs}
        occupied = [lease.slot_id for lease in leases] + [slot for grant in decisions.grants for slot in grant.slot_ids]
        assert len(occupied) == len(set(occupied)), "a slot was given twice"
        assert set(occupied) <= {slot.id for slot in self.slots}
        gained: Counter[str] = Counter()
        for grant in decisions.grants:
            job = by_id[grant.job_id]
            assert len(grant.slot_ids) == job.gang_size, "a gang is granted all or none"
            where = {(slot.host, slot.kind) for slot in self.slots if slot.id in grant.slot_ids}
            assert len(where) == 1, "a gang is granted on one host, on devices of one kind"
            assert all(job.needs.met_by(slot) for slot in self.slots if slot.id in grant.slot_ids)
            gained[job.id] += len(grant.slot_ids)
        live = {lease.id: lease for lease in leases}
        assert len(decisions.yields) == len(set(decisions.yields))
        for lease_id in decisions.yields:
            assert not live[lease_id].ending, "a lease was asked twice"
        self.check_preemptions(jobs, leases, decisions)
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
        for grant in decisions.grants:
            given = [slot for slot in self.slots if slot.id in grant.slot_ids]
            passed_over = [job for job in unserved if any(job.needs.met_by(slot) for slot in given)]
            best = min((job.rank for job in passed_over), default=99)
            assert by_id[grant.job_id].rank <= best, "a higher class comes first"
        free = [slot for slot in self.slots if slot.id not in occupied]
        idle = any(job.needs.met_by(slot) for slot in free for job in unserved)
        coming = any(lease.ending for lease in leases) or bool(decisions.yields)
        gathering = any(not job.elastic and not holding[job.id] and not gained[job.id] for job in jobs)
        assert not idle or (gathering and coming), "a slot idles while a chunk is pending"

    def check_preemptions(self, jobs: list[JobFacts], leases: list[LeaseFacts], decisions: Decisions) -> None:
        by_id = {job.id: job for job in jobs}
        holding = Counter(lease.job_id for lease in leases)
        waiting = [job for job in jobs if job.rank == 0 and not holding[job.id]]
        stopped = {lease.job_id for lease in leases if lease.id in decisions.yields and not by_id[lease.job_id].elastic}
        assert not stopped or waiting, "a training is stopped only for a high job that holds nothing"
        for job_id in stopped:
            whole = [lease for lease in leases if lease.job_id == job_id]
            assert {lease.id for lease in whole} <= set(decisions.yields), "a gang yields whole"
            assert effective_rank(by_id[job_id]) > 0
            assert by_id[job_id].num_preemptions < MOST_PREEMPTIONS
            assert min(self.clock - lease.granted_at for lease in whole) >= PREEMPTABLE_SECONDS
        self.num_preempted += len(stopped)

    def stop_gangs(self) -> None:
        """A training that was asked to yield stops at its next step, and resumes later from a checkpoint."""
        asked = {held.lease.job_id for held in self.held if held.yield_asked}
        for work in self.works:
            if work.view.elastic or work.view.id not in asked or work.finished:
                continue
            for held in [held for held in self.held if held.lease.job_id == work.view.id]:
                assert held.yield_asked, "a gang yields whole"
                work.claimed -= held.left > 0
                self.held.remove(held)
            work.num_preemptions += 1

    def work(self) -> None:
        self.stop_gangs()
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
    hosts = {host: draw(st.sampled_from((None, frozenset(), AV))) for host in "ab"[: draw(st.integers(1, 2))]}
    slots = [
        SlotFacts(
            f"{host}{number}",
            host,
            tuple(draw(st.sets(st.sampled_from("xyz"), max_size=2))),
            draw(st.sampled_from(("card", "card", "card", "older card"))),
            packages,
        )
        for host, packages in hosts.items()
        for number in range(draw(st.integers(1, 4)))
    ]
    has_av = [slot for slot in slots if slot.packages != frozenset()]
    works = []
    for number in range(draw(st.integers(1, 9))):
        is_gang = gangs and draw(st.integers(0, 3)) == 0
        needs_av = bool(has_av) and draw(st.booleans())
        largest = max(Counter((slot.host, slot.kind) for slot in (has_av if needs_av else slots)).values())
        size = draw(st.integers(1, largest)) if is_gang else 1
        view = JobFacts(
            f"j{number}", draw(st.integers(0, 2)), 0.0, elastic=not is_gang, gang_size=size,
            max_slots=None if is_gang else draw(st.none() | st.integers(1, 4)),
            model_key=draw(st.sampled_from("xyz")), needs=Needs(packages=AV) if needs_av else Needs(),
        )  # fmt: skip
        chunks = size * draw(st.integers(1, 3)) if is_gang else draw(st.integers(1, 30))
        works.append(Work(view, draw(st.integers(0, 40)), chunks, draw(st.integers(1, 15))))
    return Cluster(slots, works, tick_seconds=draw(st.sampled_from((1, 60))))


@settings(max_examples=150, deadline=None)
@given(clusters())
def test_any_mix_of_jobs_is_served_rightly_and_finishes(cluster: Cluster) -> None:
    """Otherwise two jobs could get one slot, half a gang could start, slots could idle, or jobs wait for ever."""
    tries = 1 + MOST_PREEMPTIONS  # the next attempt repeats the unfinished work of the last
    work_ticks = (work.chunks * work.chunk_ticks + tries * (2 * work.chunk_ticks + 5) for work in cluster.works)
    cluster.run(max_ticks=60 + sum(work_ticks))
    assert all(work.num_preemptions <= MOST_PREEMPTIONS for work in cluster.works)


@settings(max_examples=100, deadline=None)
@given(clusters(), st.integers(1, 4))
def test_a_high_training_starts_soon_beside_any_lower_ones(cluster: Cluster, size: int) -> None:
    """Otherwise a `high` training would wait for long trainings of lower priority."""
    cluster.tick_seconds = 60
    for work in cluster.works:
        changed = {"rank": 2, "gang_size": min(work.view.gang_size, 2)}
        work.view = JobFacts(**{**{name: getattr(work.view, name) for name in work.view.__slots__}, **changed})
        work.chunks += 500
    largest = max(Counter((slot.host, slot.kind) for slot in cluster.slots).values())
    urgent = Work(JobFacts("urgent", 0, 0.0, elastic=False, gang_size=min(size, largest)), 30, 4, 5)
    cluster.works.append(urgent)
    longest = max(work.chunk_ticks for work in cluster.works)
    # A lower training may have started just before, and has its minimum; then a chunk, or a step, until all are back.
    latest = 30 + int(PREEMPTABLE_SECONDS / cluster.tick_seconds) + longest + 3
    while cluster.now <= latest and not any(held.lease.job_id == "urgent" for held in cluster.held):
        cluster.tick()
    assert any(held.lease.job_id == "urgent" for held in cluster.held)


@settings(max_examples=100, deadline=None)
@given(clusters(gangs=False), st.integers(1, 15))
def test_a_high_job_starts_within_one_chunk_of_the_others(cluster: Cluster, chunk_ticks: int) -> None:
    """Otherwise a `high` job would wait for a whole bulk job to finish."""
    for work in cluster.works:
        work.view = JobFacts(**{**{name: getattr(work.view, name) for name in work.view.__slots__}, "rank": 2})
        work.chunks += 50
    urgent = Work(JobFacts("urgent", 0, 0.0, max_slots=1), 30, 5, chunk_ticks)
    cluster.works.append(urgent)
    longest = max(work.chunk_ticks for work in cluster.works)
    while cluster.now <= 30 + longest + 2:
        cluster.tick()
    assert urgent.finished or any(held.lease.job_id == "urgent" for held in cluster.held)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(1, 12), st.randoms(use_true_random=False))
def test_no_stream_of_single_trainings_keeps_a_gang_waiting(
    num_slots: int, size: int, longest: int, random: random.Random
) -> None:
    """A new training of one slot arrives whenever one starts, as in a queue that is never empty."""
    size = min(size, num_slots)
    cluster = Cluster([SlotFacts(f"a{number}", "a") for number in range(num_slots)], [])

    def single(number: int) -> Work:
        view = JobFacts(f"single{number}", 1, 0.0, elastic=False, gang_size=1)
        return Work(view, cluster.now, 1, random.randint(1, longest))

    cluster.works = [single(number) for number in range(2 * num_slots)]
    cluster.tick()
    cluster.works.append(Work(JobFacts("gang", 1, 0.0, elastic=False, gang_size=size), cluster.now, size, 1))
    # Those that came before it, two for each slot, have their turn; then it waits for those that run.
    for _ in range(3 * (longest + 2)):
        cluster.tick()
        if any(held.lease.job_id == "gang" for held in cluster.held):
            return
        waiting = [work for work in cluster.works if not work.finished and work.view.id != "gang"]
        cluster.works += [single(len(cluster.works) + extra) for extra in range(2 * num_slots - len(waiting))]
    raise AssertionError("the gang never started")
