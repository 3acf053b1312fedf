"""A gang that waits has a reservation that nobody delays, and slots that are asked back go to who asked for them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.ledger.leasing.grants import Grant
from jobs.specs.needs import Needs
from scheduler.policy.decide import decide
from scheduler.policy.preemption import HOLD_SECONDS
from scheduler.policy.types import Decisions, JobFacts, LeaseFacts, Reservation, SlotFacts

NOW = 1_000_000.0
NORMAL, LOW = 1, 2


def bulk(name: str, *, age: float = 0.0, rank: int = NORMAL, **fields: object) -> JobFacts:
    return JobFacts(name, rank, NOW - age, **{"pending_chunks": 100, **fields})


def training(name: str, size: int = 1, *, age: float = 0.0, left: float | None = None) -> JobFacts:
    return JobFacts(name, NORMAL, NOW - age, elastic=False, gang_size=size, remaining_seconds=left)


def slots(count: int, host: str = "a") -> list[SlotFacts]:
    return [SlotFacts(f"{host}{number}", host) for number in range(count)]


def lease(job_id: str, slot_id: str, **fields: object) -> LeaseFacts:
    return LeaseFacts(f"lease-{slot_id}", job_id, slot_id, NOW - 3600, **fields)


def holders(decisions: Decisions) -> dict[str, str]:
    return {slot_id: grant.job_id for grant in decisions.grants for slot_id in grant.slot_ids}


# -- the reservation


def test_the_slots_that_come_free_the_earliest_are_reserved() -> None:
    there = [*slots(3, "a"), *slots(3, "b")]
    lefts = {"a0": 500.0, "a1": 900.0, "b0": 100.0, "b1": 700.0, "b2": 800.0}
    running = [training(f"on-{slot_id}", age=99, left=left) for slot_id, left in lefts.items()]
    held = [lease(f"on-{slot_id}", slot_id) for slot_id in lefts]
    decisions = decide([*running, training("gang", 2, age=9)], there, held, NOW)
    assert decisions.reservation == Reservation("gang", ("a2", "a0"), NOW + 500)
    three = decide([*running, training("gang", 3, age=9)], there, held, NOW)
    assert three.reservation == Reservation("gang", ("b0", "b1", "b2"), NOW + 800)
    kept = "they are reserved for it and free by 1970-01-12 14:00 UTC at the latest"
    assert three.explanations["gang"] == f"next: needs 3 slots of one host at once; {kept}"


def test_a_training_that_ends_before_the_reservation_fills_it() -> None:
    held = [lease("runs", "a0")]
    before = [training("runs", age=99, left=600.0), training("gang", 2, age=9)]
    for left, fills in ((600.0, True), (601.0, False), (None, False)):
        decisions = decide([*before, training("single", left=left)], slots(2), held, NOW)
        assert holders(decisions) == ({"a1": "single"} if fills else {})
    assert holders(decide([*before, bulk("bulk")], slots(2), held, NOW)) == {"a1": "bulk"}, "it returns it in a chunk"


def test_nothing_fills_a_reservation_whose_time_is_unknown() -> None:
    before = [training("runs", age=99), training("gang", 2, age=9)]
    decisions = decide([*before, training("single", left=1.0)], slots(2), [lease("runs", "a0")], NOW)
    assert (holders(decisions), decisions.reservation) == ({}, Reservation("gang", ("a1", "a0"), None))


def test_no_time_is_promised_while_an_older_job_waits_for_these_slots() -> None:
    running = [training(name, age=99, left=600.0) for name in ("one", "two")]
    held = [lease("one", "a0"), lease("two", "a1")]
    gang = training("gang", 2, age=5)
    assert decide([*running, training("older", age=9), gang], slots(2), held, NOW).reservation.at is None
    assert decide([*running, training("large", 3, age=9), gang], slots(2), held, NOW).reservation.at == NOW + 600
    needs_more = replace(training("older", age=9), needs=Needs(packages=frozenset({"av"})))
    plain = [replace(slot, packages=frozenset()) for slot in slots(2)]
    assert decide([*running, needs_more, gang], plain, held, NOW).reservation.at == NOW + 600, "no slot suits it"


def test_a_gang_takes_all_but_one_slot_of_each_older_bulk_job() -> None:
    there = [*slots(4, "a"), *slots(4, "b")]
    older = [bulk("one", age=9), bulk("two", age=8)]
    names = {slot.id: "one" if number % 2 else "two" for number, slot in enumerate(there)}
    held = [lease(job_id, slot_id) for slot_id, job_id in names.items()]
    decisions = decide([*older, training("gang", 4)], there, held, NOW)
    assert len(decisions.yields) == 4, "an equal share would be 3 each, and 2 of one host are not enough"
    assert set(decisions.yields.values()) == {"gang"}
    assert decide([*older, training("gang", 4)], there[:4], held[:4], NOW).yields == {}, "each keeps one"


# -- slots that were asked back


def test_a_returned_slot_goes_to_the_job_it_was_asked_for() -> None:
    waiting = [bulk("older", age=9), bulk("asker", age=5)]
    returned = replace(slots(1)[0], kept_for="asker")
    assert decide(waiting, [returned], [], NOW).grants == (Grant("asker", ("a0",)),)
    higher = replace(waiting[0], rank=0)
    assert decide([higher, waiting[1]], [returned], [], NOW).grants == (Grant("older", ("a0",)),), "classes come first"
    resting = replace(waiting[1], not_before=NOW + 9)
    assert decide([waiting[0], resting], [returned], [], NOW).grants == (Grant("older", ("a0",)),)
    holding = decide(waiting, [returned, *slots(2)[1:]], [lease("asker", "a1")], NOW)
    assert holding.grants == (Grant("older", ("a0",)),), "it has a slot already"


def test_a_slot_that_is_being_returned_is_promised_to_who_asked_for_it() -> None:
    big = bulk("big", age=99, pending_chunks=0)
    waiting = [bulk("older", age=9), bulk("asker", age=5)]
    held = [lease("big", "a0", ending=True, yield_for="asker"), lease("big", "a1"), lease("big", "a2")]
    decisions = decide([big, *waiting], slots(3), held, NOW)
    assert decisions.yields == {"lease-a1": "older"} or decisions.yields == {"lease-a2": "older"}
    assert all(reason.startswith("next: ") for reason in decisions.explanations.values())


def test_an_older_bulk_job_does_not_take_what_a_gang_asked_for() -> None:
    """Otherwise the gang would ask again, and so on for ever."""
    there = [replace(slot, kept_for="gang") for slot in slots(2)]
    waiting = [bulk("older", age=9), training("gang", 2, age=5)]
    assert decide(waiting, there, [], NOW).grants == (Grant("gang", ("a0", "a1")),)
    half = [there[0], *slots(2)[1:]]
    held = [lease("else", "a1", ending=True, yield_for="gang")]
    decisions = decide([*waiting, bulk("else", age=1)], half, held, NOW)
    assert (decisions.grants, decisions.yields) == ((), {})
    assert decisions.explanations["gang"] == "next: waits for 1 slot that other jobs return"


# -- over time, with a queue to which nothing is added


@dataclass
class Frozen:
    """A cluster in which trainings end at the latest when their bounds say; time goes from one end to the next."""

    slots: list[SlotFacts]
    jobs: dict[str, JobFacts]
    seconds: dict[str, float]
    """Training -> how long it really takes."""
    now: float = NOW
    leases: list[LeaseFacts] = field(default_factory=list)
    begun: dict[str, float] = field(default_factory=dict)
    num_yields: int = 0

    def decide(self) -> Decisions:
        """Decide once, check the decisions, and carry them out; leases that were asked to yield end a second later."""
        jobs = [self._with_time(job) for job in self.jobs.values()]
        decisions = decide(jobs, self.slots, self.leases, self.now)
        by_id = {job.id: job for job in jobs}
        reservation = decisions.reservation
        for grant in decisions.grants:
            job = by_id[grant.job_id]
            for slot_id in grant.slot_ids:
                self.leases.append(LeaseFacts(f"{slot_id}-{self.now}", job.id, slot_id, self.now))
            self.begun[job.id] = self.now
            asked_for = {slot.id for slot in self.slots if slot.kept_for == job.id}
            filled = set(grant.slot_ids) & set(reservation.slot_ids) if reservation is not None else set()
            if not job.elastic and filled - asked_for:
                comes_before = (job.created_at, job.id) < (by_id[reservation.job_id].created_at, reservation.job_id)
                assert comes_before or self.now + job.remaining_seconds <= reservation.at
        self.num_yields += len(decisions.yields)
        self.leases = [
            replace(one, ending=True, yield_for=decisions.yields[one.id]) if one.id in decisions.yields else one
            for one in self.leases
        ]
        return decisions

    def end_yields(self) -> None:
        """End the leases that were asked to yield."""
        returned = {one.slot_id: one.yield_for for one in self.leases if one.ending}
        self.leases = [one for one in self.leases if not one.ending]
        self.slots = [replace(slot, kept_for=returned.get(slot.id, slot.kept_for)) for slot in self.slots]

    def advance(self) -> None:
        """Go on to the next moment at which a slot comes free."""
        if any(one.ending for one in self.leases):
            self.end_yields()
            self.now += 1
            return
        ends = {one.job_id: self._end(one.job_id) for one in self.leases if not self.jobs[one.job_id].elastic}
        held = [one.granted_at + HOLD_SECONDS for one in self.leases if self.jobs[one.job_id].elastic]
        self.now = min((*ends.values(), *(at for at in held if at > self.now)), default=self.now + HOLD_SECONDS)
        for job_id in [job_id for job_id, end in ends.items() if end <= self.now]:
            self.leases = [one for one in self.leases if one.job_id != job_id]
            del self.jobs[job_id]

    def _end(self, job_id: str) -> float:
        return self.begun[job_id] + self.seconds[job_id]

    def _with_time(self, job: JobFacts) -> JobFacts:
        if job.elastic or job.id not in self.begun:
            return job
        return replace(job, remaining_seconds=job.remaining_seconds - (self.now - self.begun[job.id]))


@st.composite
def frozen(draw: st.DrawFn, *, with_bulk: bool) -> Frozen:
    """Running trainings, then a gang, then trainings that are younger, and perhaps bulk jobs that are younger too."""
    there = [slot for host in "ab"[: draw(st.integers(1, 2))] for slot in slots(draw(st.integers(2, 4)), host)]
    size = draw(st.integers(2, 4))
    jobs, seconds = {}, {}
    for number in range(draw(st.integers(len(there) - 1, 2 * len(there)))):
        name = f"training{number:02}"
        bound = draw(st.integers(20, 400))
        is_older = number < len(there) - 1
        jobs[name] = training(name, age=50.0 if is_older else 1.0, left=float(bound))
        seconds[name] = float(draw(st.integers(1, bound)))
    cluster = Frozen(there, jobs, seconds)
    cluster.decide()
    jobs["gang"] = training("gang", min(size, 2), age=20, left=30.0)
    seconds["gang"] = 30.0
    if with_bulk:
        for number in range(draw(st.integers(1, 3))):
            jobs[f"bulk{number}"] = bulk(f"bulk{number}", rank=draw(st.sampled_from((NORMAL, LOW))))
    return cluster


@settings(max_examples=150, deadline=None)
@given(st.booleans().flatmap(lambda with_bulk: frozen(with_bulk=with_bulk)))
def test_no_promise_moves_later_if_bounds_hold(cluster: Frozen) -> None:
    promised: float | None = None
    for _ in range(500):
        decisions = cluster.decide()
        if "gang" in cluster.begun:
            # Bulk returns its slots within a second here, once it has held them for the minimum.
            assert promised is None or cluster.now <= promised + HOLD_SECONDS + 2
            return
        reservation = decisions.reservation
        if reservation is not None:
            at = reservation.at
            assert at is not None, "everything is known, and it is the next"
            assert promised is None or at <= max(promised, cluster.now), "the promise moved later"
            promised = at
            idle = {slot.id for slot in cluster.slots} - {one.slot_id for one in cluster.leases}
            assert not idle or not any(job.elastic for job in cluster.jobs.values()), "bulk fills what is reserved"
        cluster.advance()
    pytest.fail("the gang never started")


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(2, 4), st.randoms(use_true_random=False))
def test_a_stream_of_trainings_delays_a_gang_by_one_bound_at_most(
    num_slots: int, size: int, rng: random.Random
) -> None:
    """A younger training with a bound arrives whenever one has started."""
    size = min(size, num_slots)
    bounds = {f"first{number}": float(rng.randint(20, 400)) for number in range(num_slots)}
    jobs = {name: training(name, age=50, left=bound) for name, bound in bounds.items()}
    cluster = Frozen(slots(num_slots), jobs, dict(bounds))
    cluster.decide()
    jobs["gang"], cluster.seconds["gang"] = training("gang", size, age=20, left=30.0), 30.0
    for number in range(1000):
        name = f"stream{number:04}"
        left = float(rng.randint(20, 400))
        jobs[name], cluster.seconds[name] = training(name, left=left), left
        cluster.decide()
        if "gang" in cluster.begun:
            break
        cluster.advance()
    assert cluster.begun["gang"] <= NOW + max(bounds.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(2, 5))
def test_a_frozen_queue_of_bulk_and_gangs_comes_to_rest(num_slots: int, sizes: list[int], num_bulk: int) -> None:
    """Otherwise two jobs could ask each other for the same slots for ever."""
    jobs = {f"bulk{number}": bulk(f"bulk{number}", age=90 - number) for number in range(num_bulk)}
    cluster = Frozen(slots(num_slots), jobs, {})
    cluster.decide()
    for number, size in enumerate(sizes):
        name = f"gang{number}"
        jobs[name], cluster.seconds[name] = training(name, size, age=10 - number, left=1e6), 1e6
    for _ in range(6 * num_slots):
        cluster.now += HOLD_SECONDS
        cluster.decide()
        cluster.end_yields()
    before = cluster.num_yields
    for _ in range(10):
        cluster.now += HOLD_SECONDS
        cluster.decide()
        cluster.end_yields()
    assert cluster.num_yields == before <= 3 * num_slots
