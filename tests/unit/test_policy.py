"""The scheduling rules, one by one: what each kind of job may expect of them."""

from __future__ import annotations

import dataclasses
import random

import pytest

from jobs.leases import Grant
from scheduler.policy import AGED_SECONDS, HOLD_SECONDS, Decisions, JobView, LeaseView, SlotView, decide

NOW = 1_000_000.0
HIGH, NORMAL, LOW = 0, 1, 2


def job(name: str, rank: int = NORMAL, *, age: float = 0.0, pending: int = 100, **fields: object) -> JobView:
    return JobView(name, rank, NOW - age, pending_chunks=pending, **fields)


def gang(name: str, size: int, rank: int = NORMAL, *, age: float = 0.0) -> JobView:
    return JobView(name, rank, NOW - age, elastic=False, gang_size=size)


def slots(count: int, host: str = "a") -> list[SlotView]:
    return [SlotView(f"{host}{number}", host) for number in range(count)]


def lease(job_id: str, slot_id: str, *, age: float = 3600.0, **fields: object) -> LeaseView:
    return LeaseView(f"lease-{job_id}-{slot_id}", job_id, slot_id, NOW - age, **fields)


def holders(decisions: Decisions) -> dict[str, str]:
    return {slot_id: grant.job_id for grant in decisions.grants for slot_id in grant.slot_ids}


def test_nothing_to_do_gives_nothing() -> None:
    assert decide([], [], [], NOW) == Decisions()


def test_one_job_takes_every_free_slot_that_its_chunks_can_use() -> None:
    assert set(holders(decide([job("j", pending=100)], slots(4), [], NOW))) == {"a0", "a1", "a2", "a3"}
    assert len(holders(decide([job("j", pending=2)], slots(4), [], NOW))) == 2
    assert len(holders(decide([job("j", max_slots=3)], slots(4), [], NOW))) == 3


def test_a_fresh_lease_counts_as_the_taker_of_one_pending_chunk() -> None:
    one_chunk = job("j", pending=1)
    assert decide([one_chunk], slots(4), [lease("j", "a0", working=False)], NOW).grants == ()
    assert decide([one_chunk], slots(4), [lease("j", "a0", working=True)], NOW).grants == (Grant("j", ("a1",)),)


def test_a_higher_class_is_served_first_whatever_its_age() -> None:
    waiting = [job("old-low", LOW, age=3600), job("old", NORMAL, age=1800), job("new-high", HIGH)]
    assert set(holders(decide(waiting, slots(3), [], NOW)).values()) == {"new-high"}


def test_in_a_class_the_older_job_is_served_first_then_the_smaller_id() -> None:
    assert holders(decide([job("b"), job("a"), job("z", age=5)], slots(1), [], NOW)) == {"a0": "z"}
    assert holders(decide([job("b"), job("a")], slots(1), [], NOW)) == {"a0": "a"}


def test_every_job_of_a_class_gets_a_slot_before_any_grows_and_the_rest_is_shared() -> None:
    given = holders(decide([job("a", age=9), job("b", age=5), job("c", age=1, pending=1)], slots(6), [], NOW))
    assert sorted(given.values()) == ["a", "a", "a", "b", "b", "c"]


def test_a_job_that_waited_a_day_counts_one_class_up() -> None:
    fresh, aged = job("fresh", NORMAL, age=90_000), job("aged", LOW, age=100_000, waited_seconds=AGED_SECONDS + 1)
    assert holders(decide([fresh, aged], slots(1), [], NOW)) == {"a0": "aged"}
    almost = dataclasses.replace(aged, waited_seconds=AGED_SECONDS)
    assert holders(decide([fresh, almost], slots(1), [], NOW)) == {"a0": "fresh"}


def test_no_class_is_above_high() -> None:
    aged_high = job("aged", HIGH, age=10, waited_seconds=2 * AGED_SECONDS)
    assert holders(decide([job("older", HIGH, age=20), aged_high], slots(1), [], NOW)) == {"a0": "older"}


def test_a_job_in_backoff_gets_nothing_and_stands_in_nobodys_way() -> None:
    resting = job("resting", HIGH, not_before=NOW + 7)
    decisions = decide([resting, job("other")], slots(1), [], NOW)
    assert holders(decisions) == {"a0": "other"}
    assert decisions.explanations == {"resting": "backs off for another 7 s after a failure"}


def test_a_higher_class_asks_for_no_more_slots_than_it_needs() -> None:
    held = [lease("low", f"a{number}", age=1) for number in range(4)]
    running = job("low", LOW, age=50)
    decisions = decide([running, job("high", HIGH, pending=2)], slots(4), held, NOW)
    assert len(decisions.yields) == 2
    assert decisions.explanations["high"].startswith("next: ")
    assert len(decide([running, job("high", HIGH, pending=50, max_slots=1)], slots(4), held, NOW).yields) == 1


def test_a_lease_is_asked_once_and_counts_as_coming_from_then_on() -> None:
    held = [lease("low", "a0", ending=True), lease("low", "a1")]
    decisions = decide([job("low", LOW, age=50), job("high", HIGH, pending=1)], slots(2), held, NOW)
    assert (decisions.grants, decisions.yields) == ((), ())


def test_coming_slots_are_promised_to_one_job_each() -> None:
    held = [lease("low", "a0", ending=True), lease("low", "a1")]
    waiting = [job("low", LOW, age=50), job("h1", HIGH, pending=1, age=2), job("h2", HIGH, pending=1)]
    assert decide(waiting, slots(2), held, NOW).yields == ("lease-low-a1",)


def test_the_lowest_class_yields_first_and_in_it_the_youngest_job() -> None:
    held = [lease("normal", "a0"), lease("low-old", "a1"), lease("low-new", "a2")]
    running = [job("normal", NORMAL, age=9, pending=0), job("low-old", LOW, age=8), job("low-new", LOW, age=1)]
    decisions = decide([*running, job("high", HIGH, pending=1)], slots(3), held, NOW)
    assert decisions.yields == ("lease-low-new-a2",)


def test_a_job_of_the_same_class_yields_only_what_is_beyond_its_share_and_only_after_a_while() -> None:
    big, small = job("big", age=500), job("small", pending=1)
    held = [lease("big", f"a{number}") for number in range(4)]
    assert len(decide([big, small], slots(4), held, NOW).yields) == 1
    fresh = [lease("big", f"a{number}", age=HOLD_SECONDS - 1) for number in range(4)]
    assert decide([big, small], slots(4), fresh, NOW).yields == ()
    one_each = [lease("big", "a0"), lease("other", "a1")]
    assert decide([big, job("other", age=400), small], slots(2), one_each, NOW).yields == ()


def test_the_share_is_of_what_higher_classes_leave() -> None:
    held = [*(lease("high", f"a{number}") for number in range(6)), lease("big", "a6"), lease("big", "a7")]
    jobs = [job("high", HIGH, max_slots=6), job("big", age=500), job("small", pending=1)]
    assert len(decide(jobs, slots(8), held, NOW).yields) == 1


def test_a_job_that_holds_something_does_not_ask_its_own_class_for_more() -> None:
    held = [lease("big", "a0"), lease("big", "a1"), lease("big", "a2"), lease("small", "a3")]
    assert decide([job("big", age=500), job("small")], slots(4), held, NOW).yields == ()


def test_a_gang_gets_all_of_its_slots_at_once_or_none() -> None:
    assert decide([gang("g", 4)], slots(4), [], NOW).grants == (Grant("g", ("a0", "a1", "a2", "a3")),)
    decisions = decide([gang("g", 4)], slots(3), [], NOW)
    assert decisions.grants == ()
    assert decisions.explanations == {"g": "needs 4 slots at once; 3 are online"}


def test_a_gang_that_waits_for_jobs_that_cannot_yield_lets_others_start() -> None:
    held = [lease("training", "a0")]
    jobs = [gang("training", 1, age=9), gang("g", 4, HIGH), job("j", LOW)]
    assert set(holders(decide(jobs, slots(4), held, NOW)).values()) == {"j"}


def test_slots_free_while_a_gang_gathers_are_kept_for_it() -> None:
    held = [lease("low", "a0"), lease("low", "a1")]
    decisions = decide([job("low", LOW, age=50), gang("g", 4, HIGH), job("j")], slots(4), held, NOW)
    assert decisions.grants == ()
    assert set(decisions.yields) == {"lease-low-a0", "lease-low-a1"}


def test_a_gang_lies_on_one_host_where_it_fits() -> None:
    there = [*slots(3, "a"), *slots(2, "b")]
    assert decide([gang("g", 2)], there, [], NOW).grants == (Grant("g", ("b0", "b1")),)
    assert decide([gang("g", 3)], there, [], NOW).grants == (Grant("g", ("a0", "a1", "a2")),)
    assert len(decide([gang("g", 5)], there, [], NOW).grants[0].slot_ids) == 5


def test_a_warm_slot_is_taken_before_a_cold_one_and_an_empty_one_before_anothers() -> None:
    there = [SlotView("a0", "a", ("other",)), SlotView("a1", "a", ()), SlotView("a2", "a", ("mine",))]
    mine = job("j", pending=1, model_key="mine")
    assert holders(decide([mine], there, [], NOW)) == {"a2": "j"}
    assert holders(decide([mine], there[:2], [], NOW)) == {"a1": "j"}


def test_two_jobs_swap_to_the_slots_that_hold_their_models() -> None:
    there = [SlotView("a0", "a", ("y",)), SlotView("a1", "a", ("x",))]
    both = [job("wants-x", age=5, pending=1, model_key="x"), job("wants-y", pending=1, model_key="y")]
    assert holders(decide(both, there, [], NOW)) == {"a1": "wants-x", "a0": "wants-y"}


def test_a_lease_of_an_ended_job_occupies_its_slot() -> None:
    assert decide([job("j")], slots(1), [lease("gone", "a0", ending=True)], NOW).grants == ()


def test_a_lease_on_an_offline_slot_is_no_coming_slot_and_no_victim() -> None:
    held = [lease("low", "away"), lease("low", "a0")]
    decisions = decide([job("low", LOW, age=9), job("high", HIGH)], slots(1), held, NOW)
    assert decisions.yields == ("lease-low-a0",)
    held = [lease("low", "away", ending=True), lease("low", "a0")]
    assert decide([job("low", LOW, age=9), job("high", HIGH)], slots(1), held, NOW).yields == ("lease-low-a0",)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_in_which_things_are_told_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    there = slots(6)
    jobs = [job(f"j{number}", rng.randrange(3), age=rng.randrange(5), pending=rng.randrange(4)) for number in range(8)]
    held = [lease(f"j{rng.randrange(8)}", f"a{number}", working=rng.random() < 0.5) for number in range(3)]
    first = decide(jobs, there, held, NOW)
    for items in (jobs, there, held):
        rng.shuffle(items)
    assert decide(jobs, there, held, NOW) == first


def test_every_job_that_waits_is_told_why() -> None:
    assert decide([job("j")], [], [], NOW).explanations == {"j": "no slot is online"}
    held = [lease("other", "a0", age=1)]
    decisions = decide([job("other", age=9), job("j")], slots(1), held, NOW)
    assert decisions.explanations == {"j": "number 1 in the queue; the only slot is busy with jobs before it"}
