"""Promised jobs in the policy: they get what they need to be done in time, no more, and pass no one else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from scheduler.forecast.simulate import Work, simulate
from scheduler.policy.decide import decide
from scheduler.policy.promises import MARGIN, Promise, project_shares, with_promises
from scheduler.policy.types import JobFacts, LeaseFacts, ProjectFacts, SlotFacts

NOW = 1_000_000.0
SHARES = {"x": 8, "y": 8}
SLOTS = [SlotFacts(f"s{number}", "host", kind="cpu") for number in range(8)]


def bulk(name: str, age: float = 100.0, **facts: object) -> JobFacts:
    return replace(JobFacts(name, 1, NOW - age, pending_chunks=50), **facts)


def held_by(*job_ids: str) -> list[LeaseFacts]:
    """Leases on the slots in order, held for a minute."""
    return [LeaseFacts(f"l{number}", job_id, f"s{number}", NOW - 60) for number, job_id in enumerate(job_ids)]


def granted(jobs: list[JobFacts], leases: list[LeaseFacts] | None = None) -> Counter[str]:
    grants = decide(jobs, SLOTS, leases or [], NOW).grants
    return Counter({job.id: sum(len(grant.slot_ids) for grant in grants if grant.job_id == job.id) for job in jobs})


def test_a_promised_job_gets_what_it_is_entitled_to_and_the_rest_is_shared() -> None:
    assert granted([bulk("a"), bulk("b"), bulk("p", age=1.0, entitled=6)]) == {"a": 1, "b": 1, "p": 6}
    assert granted([bulk("a"), bulk("b"), bulk("p", age=1.0, entitled=2)]) == {"a": 3, "b": 3, "p": 2}


def test_new_jobs_do_not_take_the_slots_of_a_promise() -> None:
    many = [bulk(f"n{number}") for number in range(20)]
    assert granted([*many, bulk("p", age=1.0, entitled=5)])["p"] == 5


def test_a_promised_job_asks_its_own_priority_for_no_more_than_it_lacks() -> None:
    jobs = [bulk("a"), bulk("p", age=1.0, entitled=3)]
    leases = held_by(*["a"] * 7, "p")
    assert len(decide(jobs, SLOTS, leases, NOW).yields) == 2
    leases[6] = replace(leases[6], ending=True)
    assert len(decide(jobs, SLOTS, leases, NOW).yields) == 1, "one slot is on its way"
    without = [bulk("a"), bulk("p", age=1.0)]
    assert decide(without, SLOTS, held_by(*["a"] * 4, *["p"] * 4), NOW).yields == {}


def test_slots_of_a_promise_are_not_asked_back_in_its_priority() -> None:
    leases = held_by(*["p"] * 8)
    training = JobFacts("t", 1, NOW - 500, elastic=False, gang_size=2)
    for other in (bulk("a", age=500.0), training):
        assert decide([other, bulk("p", entitled=8)], SLOTS, leases, NOW).yields == {}
    high = bulk("h", rank=0, max_slots=2)
    assert len(decide([high, bulk("p", entitled=8)], SLOTS, leases, NOW).yields) == 2


def test_a_promised_job_is_entitled_to_the_slots_that_its_time_needs() -> None:
    jobs = [bulk("p"), bulk("q", max_slots=2)]
    promises = {name: Promise("x", NOW + 1000, 3000 / MARGIN) for name in "pq"}
    assert [job.entitled for job in with_promises(jobs, promises, NOW, shares=SHARES)] == [3, 2]
    assert with_promises(jobs, promises, NOW + 1000, shares=SHARES) == tuple(jobs), "a broken promise changes nothing"
    assert with_promises(jobs, {}, NOW, shares=SHARES) == tuple(jobs)


def test_the_priorities_of_a_project_have_its_share_together() -> None:
    jobs = [bulk("low", rank=2), bulk("high", rank=0), bulk("other", rank=2)]
    promises = {name: Promise("x", NOW + 1000, 6000 / MARGIN) for name in ("low", "high")}
    promises["other"] = Promise("y", NOW + 1000, 6000 / MARGIN)
    entitled = {job.id: job.entitled for job in with_promises(jobs, promises, NOW, shares=SHARES)}
    assert entitled == {"low": 2, "high": 6, "other": 6}


def test_the_job_that_is_due_first_takes_the_place_of_the_first() -> None:
    jobs = [bulk("a", age=50), bulk("p", age=40), bulk("b", age=30), bulk("q", age=20), bulk("r", age=10)]
    promises = {"p": Promise("x", NOW + 900, 1), "q": Promise("x", NOW + 100, 1), "r": Promise("y", NOW + 50, 1)}
    ages = {job.id: NOW - job.created_at for job in with_promises(jobs, promises, NOW, shares=SHARES)}
    assert ages == {"a": 50, "q": 40, "b": 30, "p": 20, "r": 10}


def test_a_promised_training_sorts_first_once_it_must_start() -> None:
    jobs = [JobFacts("a", 1, NOW - 50, elastic=False), JobFacts("t", 1, NOW - 5, elastic=False, gang_size=2)]
    promises = {"t": Promise("x", NOW + 1000, 2 * 900 / MARGIN)}
    assert with_promises(jobs, promises, NOW + 99, shares=SHARES)[1].created_at == NOW - 5
    assert with_promises(jobs, promises, NOW + 100, shares=SHARES)[1].created_at < jobs[0].created_at


def test_a_promised_job_gets_even_the_last_slot_of_others() -> None:
    jobs = [bulk(f"a{number}") for number in range(8)]
    asked = decide([*jobs, bulk("p", age=1.0, entitled=3)], SLOTS, held_by(*(job.id for job in jobs)), NOW).yields
    assert len(asked) == 3
    assert decide([*jobs, bulk("p", age=1.0)], SLOTS, held_by(*(job.id for job in jobs)), NOW).yields == {}


def test_a_high_promised_job_preempts_trainings_as_others_do() -> None:
    trainings = [JobFacts(f"t{number}", 2, NOW - 9000, elastic=False) for number in range(8)]
    leases = [replace(lease, granted_at=NOW - 9000) for lease in held_by(*(job.id for job in trainings))]
    decisions = decide([*trainings, bulk("p", rank=0, entitled=3)], SLOTS, leases, NOW)
    assert list(decisions.yields.values()) == ["p"]
    assert decisions.explanations["p"] == "next: waits for 1 slot that other jobs return"


def test_the_job_that_is_due_first_takes_slots_from_one_due_later() -> None:
    promises = {"early": Promise("x", NOW + 100, 60), "late": Promise("x", NOW + 900, 500)}
    jobs = with_promises([bulk("late"), bulk("early", age=1.0)], promises, NOW, shares={"x": 1})
    assert {job.id: job.entitled for job in jobs} == {"early": 1, "late": 0}
    slot, lease = [SLOTS[0]], held_by("late")
    assert decide(jobs, slot, lease, NOW).yields == {"l0": "early"}
    works = [Work(job, promises[job.id].slot_seconds, {"cpu": 1.0}, chunk_rows=10.0) for job in jobs]
    ends = simulate(works, slot, lease, NOW, unknown_ends=True).ends
    assert all(ends[name] <= promise.at for name, promise in promises.items())


def test_promises_of_a_project_stay_within_its_share() -> None:
    promises = {name: Promise("x", NOW + 100 + number, 400) for number, name in enumerate("pqr")}
    jobs = with_promises([bulk(name) for name in "pqr"], promises, NOW, shares={"x": 7})
    assert [job.entitled for job in jobs] == [5, 2, 0]
    assert with_promises(jobs, promises, NOW, shares={"x": 7}) == jobs
    assert [job.entitled for job in with_promises(jobs, promises, NOW, shares={"y": 7})] == [0, 0, 0]


@pytest.mark.parametrize(
    ("projects", "shares"),
    [
        ({"a": ProjectFacts()}, {"a": 10}),
        ({"a": ProjectFacts(), "b": ProjectFacts(weight=3.0)}, {"a": 2, "b": 7}),
        ({"a": ProjectFacts(), "b": ProjectFacts(weight=99.0)}, {"a": 1, "b": 9}),
        ({"a": ProjectFacts(slots=4), "b": ProjectFacts(weight=9.0)}, {"a": 4, "b": 9}),
        ({"a": ProjectFacts(weight=0.0), "b": ProjectFacts()}, {"a": 0, "b": 10}),
        ({"a": ProjectFacts(weight=0.0, slots=99), "b": ProjectFacts()}, {"a": 10, "b": 10}),
        ({"a": ProjectFacts(weight=0.0), "b": ProjectFacts(weight=0.0)}, {"a": 5, "b": 5}),
        ({"a": ProjectFacts(is_exhausted=True), "b": ProjectFacts()}, {"a": 0, "b": 10}),
        ({}, {}),
    ],
)
def test_the_part_of_a_project_is_by_weight(projects: dict[str, ProjectFacts], shares: dict[str, int]) -> None:
    assert project_shares(10, projects) == shares


@pytest.mark.parametrize("num_others", [0, 1, 5, 30])
def test_a_promise_is_kept_beside_any_number_of_other_jobs(num_others: int) -> None:
    rows = 2000.0  # slot-seconds, at a row per second
    others = [bulk(f"o{number:02}", age=500 - number) for number in range(num_others)]
    jobs = with_promises([*others, bulk("p", age=1.0)], {"p": Promise("x", NOW + 400, rows)}, NOW, shares=SHARES)
    works = [Work(job, rows, {"cpu": 1.0}, chunk_rows=10.0) for job in jobs]
    leases = held_by(*["o00"] * 8) if others else []
    assert simulate(works, SLOTS, leases, NOW, unknown_ends=True).ends["p"] <= NOW + 400
