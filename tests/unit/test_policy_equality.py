"""The quick policy decides what the plainly written one decides, and its work grows with the cluster, not faster."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from scheduler.policy.decide import decide
from scheduler.policy.types import Decisions, JobFacts, LeaseFacts, SlotFacts
from tests.support import reference_policy
from tests.support.policy_states import NOW, PolicyState, random_state

_STATES_OF_A_TEST = 600
_SEEDS = range(20)


@pytest.mark.parametrize("seed", _SEEDS)
def test_it_decides_what_the_plainly_written_policy_decides(seed: int) -> None:
    """Otherwise what was sped up would also have changed who gets a slot."""
    rng = random.Random(seed)
    for number in range(_STATES_OF_A_TEST):
        state = random_state(rng, num_slots=rng.choice((3, 8, 16, 40)), num_jobs=rng.choice((3, 8, 20, 60)))
        expected = reference_policy.decide(state.jobs, state.slots, state.leases, NOW, state.projects)
        state = state.shuffled(rng)
        decided = decide(state.jobs, state.slots, state.leases, NOW, state.projects)
        assert decided == expected, f"seed {seed}, state {number}"
        assert list(decided.explanations) == list(expected.explanations)


def test_the_random_states_reach_every_rule() -> None:
    """Otherwise the equality would be shown only for states in which little happens."""
    rng = random.Random(0)
    reached: Counter[str] = Counter()
    for _ in range(2000):
        state = random_state(rng, num_slots=16, num_jobs=20)
        reached.update(_events(state, decide(state.jobs, state.slots, state.leases, NOW, state.projects)))
    assert {name: reached[name] for name in _EVENTS if reached[name] < 10} == {}


_EVENTS = (
    "gang granted", "elastic job grows", "lower job yields", "equal job yields", "gang preempted", "training preempted",
    "promised", "promised to a gang", "reserved", "waits for the minimum", "needs packages", "too large", "in backoff",
    "reserved until", "a training fills", "served first", "another project yields", "trainings at their limit",
    "GPU hours used", "a promise asks its priority", "loading does not pay",
)  # fmt: skip


def _events(state: PolicyState, decisions: Decisions) -> set[str]:
    jobs = {job.id: job for job in state.jobs}
    held = Counter(lease.job_id for lease in state.leases)
    granted = Counter(grant.job_id for grant in decisions.grants)
    yielding = Counter(lease.job_id for lease in state.leases if lease.id in decisions.yields)
    ranks = {job.rank for job in state.jobs}
    waiting = [(jobs[job_id], reason) for job_id, reason in decisions.explanations.items()]
    quick = [replace(job, loading_seconds={}) for job in state.jobs]
    found = {
        "gang granted": any(len(grant.slot_ids) > 1 for grant in decisions.grants),
        "elastic job grows": any(held[job_id] + number > 1 for job_id, number in granted.items()),
        "lower job yields": len(ranks) > 1 and any(jobs[job_id].elastic for job_id in yielding),
        "equal job yields": len(ranks) == 1 and any(jobs[job_id].elastic for job_id in yielding),
        "gang preempted": any(not jobs[job_id].elastic and number > 1 for job_id, number in yielding.items()),
        "training preempted": any(not jobs[job_id].elastic for job_id in yielding),
        "promised": any("that other jobs return" in reason for _, reason in waiting),
        "promised to a gang": any("that other jobs return" in reason for job, reason in waiting if job.gang_size > 1),
        "reserved": any("reserved for it" in reason for _, reason in waiting),
        "reserved until": any("at the latest" in reason for _, reason in waiting),
        "a training fills": any(
            not jobs[grant.job_id].elastic and set(grant.slot_ids) & set(decisions.reservation.slot_ids)
            for grant in decisions.grants
            if decisions.reservation is not None
        ),
        "served first": any(
            slot.kept_for == grant.job_id and slot.id in grant.slot_ids
            for grant in decisions.grants
            for slot in state.slots
        ),
        "waits for the minimum": any("preempts a training once" in reason for _, reason in waiting),
        "needs packages": any("has what it needs" in reason for _, reason in waiting),
        "too large": any("the largest host has" in reason for _, reason in waiting),
        "another project yields": any(
            jobs[lease.job_id].project != jobs[decisions.yields[lease.id]].project and len(ranks) == 1
            for lease in state.leases
            if lease.id in decisions.yields
        ),
        "trainings at their limit": any("trainings may hold" in reason for _, reason in waiting),
        "GPU hours used": any("used its GPU hours" in reason for _, reason in waiting),
        "in backoff": any("after a failure" in reason for _, reason in waiting),
        "a promise asks its priority": len(ranks) == 1
        and any(jobs[job_id].entitled for job_id in decisions.yields.values()),
        "loading does not pay": decisions != decide(quick, state.slots, state.leases, NOW, state.projects),
    }
    return {name for name, was_reached in found.items() if was_reached}


# -- steps


class Reads:
    """Counts how often the policy reads an attribute of a job, a slot or a lease."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, facts: Any) -> Any:
        """A copy of a job, slot or lease whose attributes are counted when they are read."""
        reads = self

        class Counted(type(facts)):  # type: ignore[misc]
            def __getattribute__(self, name: str) -> Any:
                reads.count += 1
                return super().__getattribute__(name)

        return Counted(**{field.name: getattr(facts, field.name) for field in fields(facts)})


def _num_reads(state: PolicyState) -> int:
    reads = Reads()
    counted = [[reads.of(one) for one in facts] for facts in (state.jobs, state.slots, state.leases)]
    expected = decide(state.jobs, state.slots, state.leases, NOW, state.projects)
    reads.count = 0
    assert decide(*counted, NOW) == expected
    return reads.count


def _slots(num_slots: int) -> list[SlotFacts]:
    return [SlotFacts(f"slot{number:04}", f"host{number // 8:03}") for number in range(num_slots)]


def _bulk(number: int, rank: int, age: float) -> JobFacts:
    return JobFacts(f"bulk{number:04}", rank, NOW - age, pending_chunks=1000)


def _training(number: int, rank: int, age: float, size: int = 1) -> JobFacts:
    return JobFacts(f"training{number:04}", rank, NOW - age, elastic=False, gang_size=size)


def _leases(jobs: list[JobFacts], num_slots: int, age: float = 3600.0) -> list[LeaseFacts]:
    """Each slot is held by one of these jobs, in turns."""
    return [
        LeaseFacts(f"lease{number:04}", jobs[number % len(jobs)].id, f"slot{number:04}", NOW - age)
        for number in range(num_slots)
    ]


def _all_free(num_slots: int) -> PolicyState:
    return PolicyState([_bulk(number, 1, number) for number in range(2 * num_slots)], _slots(num_slots), [])


def _behind(holders: list[JobFacts], waiting: list[JobFacts], num_slots: int, age: float = 3600.0) -> PolicyState:
    return PolicyState([*holders, *waiting], _slots(num_slots), _leases(holders, num_slots, age))


def _trainings_busy(num_slots: int) -> PolicyState:
    running = [_training(number, 1, 9000) for number in range(num_slots)]
    return _behind(running, [_bulk(number, 1, number) for number in range(2 * num_slots)], num_slots)


def _lower_job_holds_all(num_slots: int) -> PolicyState:
    waiting = [_bulk(number, 1, number) for number in range(1, 2 * num_slots)]
    return _behind([_bulk(0, 2, 9000)], waiting, num_slots)


def _equal_jobs_hold_all(num_slots: int) -> PolicyState:
    running = [_bulk(number, 1, 9000) for number in range(10)]
    return _behind(running, [_bulk(number, 1, 1) for number in range(num_slots, 3 * num_slots)], num_slots)


def _gangs_behind_trainings(num_slots: int) -> PolicyState:
    running = [_training(number, 1, 9000) for number in range(num_slots)]
    waiting = [_training(number, 1, 1, size=8) for number in range(num_slots, 3 * num_slots)]
    return _behind(running, waiting, num_slots)


def _high_jobs_preempt(num_slots: int) -> PolicyState:
    running = [_training(number, 1, 9000) for number in range(num_slots)]
    return _behind(running, [_training(number, 0, 1) for number in range(num_slots, 3 * num_slots)], num_slots)


def _high_jobs_wait_for_the_minimum(num_slots: int) -> PolicyState:
    running = [_training(number, 1, 9000) for number in range(num_slots)]
    waiting = [_bulk(number, 0, 1) for number in range(num_slots, 3 * num_slots)]
    return _behind(running, waiting, num_slots, age=100.0)


def _small_jobs_above_a_low_one(num_slots: int) -> PolicyState:
    """Each normal job has a slot, and loading its model on more does not pay; half of those of the low job have it."""
    small = [
        replace(_bulk(number, 1, 9000), model_key=f"m{number % 10}", work_seconds=30.0, loading_seconds={"": 20.0})
        for number in range(1, num_slots // 2)
    ]
    slots = [
        replace(slot, warm_models=(f"m{number % 20}",) if number % 2 else ())
        for number, slot in enumerate(_slots(num_slots))
    ]
    low = [_bulk(0, 2, 9000)]
    return PolicyState([*small, *low], slots, _leases([*small, *low * len(small)], num_slots))


@pytest.mark.parametrize(
    "make",
    [
        _all_free, _trainings_busy, _lower_job_holds_all, _equal_jobs_hold_all, _gangs_behind_trainings,
        _high_jobs_preempt, _high_jobs_wait_for_the_minimum, _small_jobs_above_a_low_one,
    ],
)  # fmt: skip
def test_work_grows_as_the_cluster_does(make: Callable[[int], PolicyState]) -> None:
    """Otherwise a decision about a thousand slots would take seconds, and a free slot would wait as long."""
    small, large = (_num_reads(make(num_slots)) for num_slots in (40, 400))
    assert large < 12 * small, "ten times the slots, jobs and leases"


def test_only_gangs_that_are_promised_slots_scan_the_leases() -> None:
    """Of many gangs that wait for slots which another job must return, only as many as there are slots for."""
    waiting = [_training(number, 1, 1, size=8) for number in range(800)]
    state = _behind([_bulk(0, 1, 9000)], waiting, num_slots=400)
    num_facts = len(state.jobs) + len(state.slots) + len(state.leases)
    num_promised = 400 // 8
    assert _num_reads(state) < 20 * num_facts + 3 * num_promised * len(state.leases)
