"""The scheduling rules, one by one."""

from __future__ import annotations

import dataclasses
import random

import pytest

from jobs.ledger.leasing.grants import Grant
from jobs.specs.needs import Needs
from scheduler.policy.decide import decide
from scheduler.policy.preemption import HOLD_SECONDS, MOST_PREEMPTIONS
from scheduler.policy.types import AGED_SECONDS, BRIEF_SECONDS, Decisions, JobFacts, LeaseFacts, SlotFacts

NOW = 1_000_000.0
HIGH, NORMAL, LOW = 0, 1, 2

PREEMPTABLE_SECONDS = JobFacts("", 0, 0.0).preemptable_seconds


def job(name: str, rank: int = NORMAL, *, age: float = 0.0, pending: int = 100, **fields: object) -> JobFacts:
    return JobFacts(name, rank, NOW - age, pending_chunks=pending, **fields)


def gang(name: str, size: int, rank: int = NORMAL, *, age: float = 0.0, **fields: object) -> JobFacts:
    return JobFacts(name, rank, NOW - age, elastic=False, gang_size=size, **fields)


def slots(count: int, host: str = "a") -> list[SlotFacts]:
    return [SlotFacts(f"{host}{number}", host) for number in range(count)]


def lease(job_id: str, slot_id: str, *, age: float = 3600.0, **fields: object) -> LeaseFacts:
    return LeaseFacts(f"lease-{job_id}-{slot_id}", job_id, slot_id, NOW - age, **fields)


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


def test_a_higher_priority_is_served_first_at_any_age() -> None:
    waiting = [job("old-low", LOW, age=3600), job("old", NORMAL, age=1800), job("new-high", HIGH)]
    assert set(holders(decide(waiting, slots(3), [], NOW)).values()) == {"new-high"}


def test_in_a_class_the_older_job_is_served_first_then_the_smaller_id() -> None:
    assert holders(decide([job("b"), job("a"), job("z", age=5)], slots(1), [], NOW)) == {"a0": "z"}
    assert holders(decide([job("b"), job("a")], slots(1), [], NOW)) == {"a0": "a"}


def test_each_job_of_a_class_gets_one_slot_first_and_the_rest_is_shared() -> None:
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


def test_a_job_in_backoff_gets_no_slot_and_blocks_no_other() -> None:
    resting = job("resting", HIGH, not_before=NOW + 7)
    decisions = decide([resting, job("other")], slots(1), [], NOW)
    assert holders(decisions) == {"a0": "other"}
    assert decisions.explanations == {"resting": "retries in 7 s after a failure"}


def test_a_training_that_backs_off_briefly_keeps_its_slots() -> None:
    brief, long = (gang("g", 2, HIGH, age=9, not_before=NOW + seconds) for seconds in (BRIEF_SECONDS, 1.5))
    behind = [gang("single", 1), job("bulk", LOW)]
    decisions = decide([brief, *behind], slots(3), [], NOW)
    assert holders(decisions) == {"a2": "single"}
    assert decisions.explanations["g"] == "retries in 1 s after a failure"
    assert set(holders(decide([long, *behind], slots(3), [], NOW)).values()) == {"single", "bulk"}
    assert len(holders(decide([brief, *behind], slots(3), [], NOW + BRIEF_SECONDS))) == 3, "then it starts on them"
    urgent = job("first", HIGH, age=10, pending=3)
    assert set(holders(decide([urgent, brief], slots(2), [], NOW)).values()) == {"first"}, "only from those behind it"


def test_a_training_in_backoff_neither_asks_for_slots_nor_keeps_too_few() -> None:
    brief = gang("g", 2, HIGH, not_before=NOW + BRIEF_SECONDS / 2)
    held = [lease("low", "a0"), lease("low", "a1")]
    decisions = decide([brief, job("low", LOW, age=9)], slots(3), held, NOW)
    assert (holders(decisions), decisions.yields) == ({"a2": "low"}, {})
    elastic = job("e", HIGH, not_before=NOW + BRIEF_SECONDS / 2)
    assert holders(decide([elastic, job("other")], slots(1), [], NOW)) == {"a0": "other"}


def test_a_higher_class_asks_for_no_more_slots_than_it_needs() -> None:
    held = [lease("low", f"a{number}", age=1) for number in range(4)]
    running = job("low", LOW, age=50)
    decisions = decide([running, job("high", HIGH, pending=2)], slots(4), held, NOW)
    assert len(decisions.yields) == 2
    assert decisions.explanations["high"].startswith("next: ")
    assert len(decide([running, job("high", HIGH, pending=50, max_slots=1)], slots(4), held, NOW).yields) == 1


def test_a_lease_is_asked_to_yield_once_and_counts_as_freed_from_then() -> None:
    held = [lease("low", "a0", ending=True), lease("low", "a1")]
    decisions = decide([job("low", LOW, age=50), job("high", HIGH, pending=1)], slots(2), held, NOW)
    assert (decisions.grants, decisions.yields) == ((), {})


def test_coming_slots_are_promised_to_one_job_each() -> None:
    held = [lease("low", "a0", ending=True), lease("low", "a1")]
    waiting = [job("low", LOW, age=50), job("h1", HIGH, pending=1, age=2), job("h2", HIGH, pending=1)]
    assert tuple(decide(waiting, slots(2), held, NOW).yields) == ("lease-low-a1",)


def test_the_lowest_class_yields_first_and_in_it_the_youngest_job() -> None:
    held = [lease("normal", "a0"), lease("low-old", "a1"), lease("low-new", "a2")]
    running = [job("normal", NORMAL, age=9, pending=0), job("low-old", LOW, age=8), job("low-new", LOW, age=1)]
    decisions = decide([*running, job("high", HIGH, pending=1)], slots(3), held, NOW)
    assert tuple(decisions.yields) == ("lease-low-new-a2",)


def test_a_job_of_the_same_class_yields_only_its_surplus_after_a_while() -> None:
    big, small = job("big", age=500), job("small", pending=1)
    held = [lease("big", f"a{number}") for number in range(4)]
    assert len(decide([big, small], slots(4), held, NOW).yields) == 1
    fresh = [lease("big", f"a{number}", age=HOLD_SECONDS - 1) for number in range(4)]
    assert tuple(decide([big, small], slots(4), fresh, NOW).yields) == ()
    one_each = [lease("big", "a0"), lease("other", "a1")]
    assert tuple(decide([big, job("other", age=400), small], slots(2), one_each, NOW).yields) == ()


def test_the_share_is_of_the_slots_that_higher_priorities_leave() -> None:
    held = [*(lease("high", f"a{number}") for number in range(6)), lease("big", "a6"), lease("big", "a7")]
    jobs = [job("high", HIGH, max_slots=6), job("big", age=500), job("small", pending=1)]
    assert len(decide(jobs, slots(8), held, NOW).yields) == 1


def test_a_job_that_holds_slots_does_not_ask_its_own_priority_for_more() -> None:
    held = [lease("big", "a0"), lease("big", "a1"), lease("big", "a2"), lease("small", "a3")]
    assert tuple(decide([job("big", age=500), job("small")], slots(4), held, NOW).yields) == ()


def test_a_gang_gets_all_of_its_slots_at_once_or_none() -> None:
    assert decide([gang("g", 4)], slots(4), [], NOW).grants == (Grant("g", ("a0", "a1", "a2", "a3")),)
    decisions = decide([gang("g", 4)], slots(3), [], NOW)
    assert decisions.grants == ()
    assert decisions.explanations == {"g": "needs 4 slots of one host at once; the largest host has 3 online"}


def test_a_gang_that_waits_for_jobs_that_cannot_yield_lets_others_start() -> None:
    held = [lease("training", "a0")]
    jobs = [gang("training", 1, HIGH, age=9), gang("g", 4, HIGH), job("j", LOW)]
    decisions = decide(jobs, slots(4), held, NOW)
    assert set(holders(decisions).values()) == {"j"}
    kept = "next: needs 4 slots of one host at once; they are reserved for it as the jobs on them end"
    assert decisions.explanations == {"g": kept}


def test_a_gang_is_not_called_the_next_while_older_jobs_wait() -> None:
    held = [lease("one", "a0"), lease("two", "a1")]
    jobs = [gang("one", 1, age=9), gang("two", 1, age=8), gang("older", 1, age=7), gang("g", 2, age=1)]
    kept = "number 2 in the queue: needs 2 slots of one host at once; they are reserved for it as the jobs on them end"
    assert decide(jobs, slots(2), held, NOW).explanations["g"] == kept


def test_no_further_training_starts_on_slots_that_the_first_gang_waits_for() -> None:
    there = [*slots(2, "a"), *slots(2, "b")]
    held = [lease("one", "a0"), lease("two", "b0"), lease("three", "b1")]
    running = [gang(name, 1, age=99) for name in ("one", "two", "three")]
    younger = [gang("single", 1, age=1), gang("low", 1, LOW, age=500)]
    decisions = decide([*running, gang("g", 2, age=9), *younger], there, held, NOW)
    assert decisions.grants == (), "a1 is kept for the gang, which waits for one training on host a and two on host b"
    elsewhere = decide([*running[:2], gang("g", 2, age=9), *younger], there, held[:2], NOW)
    assert holders(elsewhere) == {"b1": "single"}, "only one place is kept"
    older = decide([*running, gang("g", 2, age=9), gang("single", 1, age=10)], there, held, NOW)
    assert holders(older) == {"a1": "single"}, "what is older or of a higher class comes before the gang"
    bulk = decide([*running, gang("g", 2, age=9), job("bulk", LOW)], there, held, NOW)
    assert holders(bulk) == {"a1": "bulk"}, "what yields in a chunk fills the slot meanwhile"


def test_a_second_gang_that_waits_keeps_nothing() -> None:
    there = [*slots(2, "a"), *slots(3, "b")]
    held = [lease("one", "a0"), lease("two", "b0"), lease("three", "b1")]
    jobs = [gang(name, 1, age=99) for name in ("one", "two", "three")]
    jobs += [gang("first", 2, age=9), gang("second", 3, age=8), gang("single", 1)]
    decisions = decide(jobs, there, held, NOW)
    assert holders(decisions) == {"b2": "single"}
    assert decisions.explanations["second"] == "needs 3 slots of one host at once; at most 1 is free on one host"


def test_slots_free_while_a_gang_gathers_are_kept_for_it() -> None:
    held = [lease("low", "a0"), lease("low", "a1")]
    decisions = decide([job("low", LOW, age=50), gang("g", 4, HIGH), job("j")], slots(4), held, NOW)
    assert decisions.grants == ()
    assert set(decisions.yields) == {"lease-low-a0", "lease-low-a1"}


def test_a_gang_lies_on_one_host_or_waits() -> None:
    there = [*slots(3, "a"), *slots(2, "b")]
    assert decide([gang("g", 2)], there, [], NOW).grants == (Grant("g", ("b0", "b1")),)
    assert decide([gang("g", 3)], there, [], NOW).grants == (Grant("g", ("a0", "a1", "a2")),)
    decisions = decide([gang("g", 5)], there, [], NOW)
    assert decisions.grants == ()
    assert decisions.explanations == {"g": "needs 5 slots of one host at once; the largest host has 3 online"}
    taken = [lease("other", "a0")]
    jobs = [gang("other", 1, age=9), gang("g", 3)]
    assert decide(jobs, there, taken, NOW).explanations == {
        "g": "next: needs 3 slots of one host at once; they are reserved for it as the jobs on them end"
    }


def test_a_gangs_devices_are_all_of_one_kind() -> None:
    there = [SlotFacts(f"a{number}", "a", (), "cuda large" if number < 2 else "cuda small") for number in range(5)]
    assert decide([gang("g", 3)], there, [], NOW).grants == (Grant("g", ("a2", "a3", "a4")),)
    assert decide([gang("g", 4)], there, [], NOW).grants == ()


def test_a_gang_leaves_warm_slots_to_those_who_profit_from_them() -> None:
    there = [SlotFacts("a0", "a", ("x",)), SlotFacts("a1", "a"), SlotFacts("a2", "a", ("x", "y")), SlotFacts("a3", "a")]
    assert decide([gang("g", 3)], there, [], NOW).grants == (Grant("g", ("a1", "a3", "a0")),)


def test_only_the_host_on_which_a_gang_gathers_is_kept_for_it() -> None:
    held = [lease("low", "a0"), lease("low", "a1")]
    there = [*slots(3, "a"), *slots(1, "b")]
    decisions = decide([job("low", LOW, age=50), gang("g", 3, HIGH), job("j")], there, held, NOW)
    assert holders(decisions) == {"b0": "j"}
    assert set(decisions.yields) == {"lease-low-a0", "lease-low-a1"}
    assert decisions.explanations["g"] == "next: waits for 2 slots that other jobs return"


def test_a_gang_gathers_on_one_host_alone_and_where_it_asks_least() -> None:
    held = [lease("low", slot_id) for slot_id in ("a0", "a1", "a2", "b0", "b1")]
    there = [*slots(3, "a"), *slots(3, "b")]
    decisions = decide([job("low", LOW, age=50, pending=0), gang("g", 3, HIGH)], there, held, NOW)
    assert set(decisions.yields) == {"lease-low-b0", "lease-low-b1"}


def test_a_training_takes_all_from_younger_and_the_surplus_of_older_jobs() -> None:
    held = [lease("bulk", f"a{number}") for number in range(4)]
    assert len(decide([job("bulk", age=5), gang("g", 4, age=9)], slots(4), held, NOW).yields) == 4
    assert tuple(decide([job("bulk", age=9), gang("g", 4, age=5)], slots(4), held, NOW).yields) == ()
    assert len(decide([job("bulk", age=9), gang("g", 2, age=5)], slots(4), held, NOW).yields) == 2
    fresh = [lease("bulk", f"a{number}", age=HOLD_SECONDS - 1) for number in range(4)]
    assert tuple(decide([job("bulk", age=5), gang("g", 4, age=9)], slots(4), fresh, NOW).yields) == ()


# -- preemption


def running(name: str, rank: int, *slot_ids: str, age: float = 3600.0, **fields: object) -> tuple[JobFacts, list]:
    """A training that has held some slots for so long."""
    view = gang(name, len(slot_ids), rank, age=age + 10, **fields)
    return view, [lease(name, slot_id, age=age) for slot_id in slot_ids]


def test_a_high_job_preempts_a_lower_training_whole() -> None:
    victim, held = running("victim", NORMAL, "a0", "a1", "a2", "a3")
    for urgent in (gang("urgent", 1, HIGH), gang("urgent", 4, HIGH), job("urgent", HIGH)):
        decisions = decide([victim, urgent], slots(4), held, NOW)
        assert set(decisions.yields) == {one.id for one in held}
        assert decisions.explanations["urgent"].startswith("next: ")


def test_only_high_preempts_and_only_lower_priorities() -> None:
    victim, held = running("victim", NORMAL, "a0")
    assert tuple(decide([victim, gang("urgent", 1, HIGH)], slots(1), held, NOW).yields) == ("lease-victim-a0",)
    peer, held = running("peer", HIGH, "a0")
    assert tuple(decide([peer, gang("urgent", 1, HIGH)], slots(1), held, NOW).yields) == ()
    low, held = running("low", LOW, "a0")
    assert tuple(decide([low, gang("normal", 1, NORMAL)], slots(1), held, NOW).yields) == ()
    aged = gang("aged", 1, NORMAL, age=100_000, waited_seconds=AGED_SECONDS + 1)
    assert tuple(decide([low, aged], slots(1), held, NOW).yields) == (), "one that counts as high is not high"
    aged_victim, held = running("victim", NORMAL, "a0", waited_seconds=AGED_SECONDS + 1)
    assert tuple(decide([aged_victim, gang("urgent", 1, HIGH)], slots(1), held, NOW).yields) == ()


def test_nobody_is_preempted_where_the_job_could_not_start_then() -> None:
    victim, held = running("victim", LOW, "a0", "a1")
    peer, of_peer = running("peer", HIGH, "a2")
    decisions = decide([victim, peer, gang("urgent", 4, HIGH)], slots(4), [*held, *of_peer], NOW)
    assert tuple(decisions.yields) == ()
    assert len(decide([victim, peer, gang("urgent", 3, HIGH)], slots(4), [*held, *of_peer], NOW).yields) == 2


def test_a_training_has_its_minimum_of_time() -> None:
    young, held = running("young", LOW, "a0", age=PREEMPTABLE_SECONDS - 1)
    assert tuple(decide([young, gang("urgent", 1, HIGH)], slots(1), held, NOW).yields) == ()
    old, held = running("old", LOW, "a0", age=PREEMPTABLE_SECONDS)
    assert tuple(decide([old, gang("urgent", 1, HIGH)], slots(1), held, NOW).yields) == ("lease-old-a0",)


def test_no_other_training_starts_where_a_job_waits_to_preempt_one() -> None:
    young, held = running("young", LOW, "a0", age=PREEMPTABLE_SECONDS - 1)
    waiting = [young, gang("urgent", 2, HIGH), gang("next", 1, NORMAL), job("bulk", LOW, pending=1)]
    decisions = decide(waiting, slots(2), held, NOW)
    assert holders(decisions) == {"a1": "bulk"}, "what gives its slot back within a chunk does no harm"
    assert decisions.explanations["urgent"].startswith("next: preempts a training once")
    there = [*slots(2, "a"), *slots(1, "b")]
    assert holders(decide(waiting[:3], there, held, NOW)) == {"b0": "next"}
    assert holders(decide([young, *waiting[2:3]], slots(2), held, NOW)) == {"a1": "next"}


def test_a_training_is_preempted_a_few_times_and_then_left_alone() -> None:
    for number in range(MOST_PREEMPTIONS + 2):
        victim, held = running("victim", LOW, "a0", num_preemptions=number)
        yields = decide([victim, gang("urgent", 1, HIGH)], slots(1), held, NOW).yields
        assert bool(yields) == (number < MOST_PREEMPTIONS)


def test_bulk_jobs_yield_before_any_training_stops() -> None:
    victim, held = running("victim", LOW, "a0", "a1")
    bulk = [lease("bulk", "a2", age=1), lease("bulk", "a3", age=1)]
    jobs = [victim, job("bulk", NORMAL, pending=0)]
    assert set(decide([*jobs, gang("urgent", 2, HIGH)], slots(4), [*held, *bulk], NOW).yields) == {
        "lease-bulk-a2", "lease-bulk-a3",
    }  # fmt: skip
    decisions = decide([*jobs, gang("urgent", 3, HIGH)], slots(4), [*held, *bulk], NOW)
    assert len(decisions.yields) == 3
    assert {"lease-victim-a0", "lease-victim-a1"} < set(decisions.yields)


def test_the_lowest_class_stops_first_then_the_youngest_and_no_more() -> None:
    low, of_low = running("low", LOW, "a0", age=9000)
    old, of_old = running("old", NORMAL, "a1", age=8000)
    new, of_new = running("new", NORMAL, "a2", "a3", age=7000)
    jobs, held = [low, old, new], [*of_low, *of_old, *of_new]
    assert tuple(decide([*jobs, gang("urgent", 1, HIGH)], slots(4), held, NOW).yields) == ("lease-low-a0",)
    two = decide([*jobs, gang("urgent", 2, HIGH)], slots(4), held, NOW)
    assert set(two.yields) == {"lease-new-a2", "lease-new-a3"}, "low need not stop: new alone is enough"
    assert len(decide([*jobs, gang("urgent", 4, HIGH)], slots(4), held, NOW).yields) == 4


def test_a_gang_preempts_on_the_host_where_fewest_trainings_stop() -> None:
    one, of_one = running("one", LOW, "a0", "a1")
    two, of_two = running("two", LOW, "b0")
    three, of_three = running("three", LOW, "b1")
    decisions = decide(
        [one, two, three, gang("urgent", 2, HIGH)], [*slots(2, "a"), *slots(2, "b")], [*of_one, *of_two, *of_three], NOW
    )
    assert set(decisions.yields) == {"lease-one-a0", "lease-one-a1"}


def test_a_bulk_job_preempts_to_start_and_never_to_grow() -> None:
    one, of_one = running("one", LOW, "a0", age=2000)
    two, of_two = running("two", LOW, "a1", age=1000)
    urgent = job("urgent", HIGH, pending=50)
    assert tuple(decide([one, two, urgent], slots(2), [*of_one, *of_two], NOW).yields) == ("lease-two-a1",)
    held = [*of_one, lease("urgent", "a1")]
    assert tuple(decide([one, urgent], slots(2), held, NOW).yields) == ()


def test_a_training_that_stops_already_is_waited_for() -> None:
    one, of_one = running("one", LOW, "a0", age=2000)
    two, of_two = running("two", LOW, "a1", age=1000)
    stopping = [dataclasses.replace(held, ending=True) for held in of_two]
    decisions = decide([one, two, gang("urgent", 1, HIGH)], slots(2), [*of_one, *stopping], NOW)
    assert tuple(decisions.yields) == ()
    assert decisions.explanations["urgent"] == "next: waits for 1 slot that other jobs return"


def test_preempting_a_gang_counts_only_its_slots_that_are_online() -> None:
    victim, held = running("victim", LOW, "a0", "away")
    peer, of_peer = running("peer", HIGH, "a1")
    assert tuple(decide([victim, peer, gang("urgent", 2, HIGH)], slots(2), [*held, *of_peer], NOW).yields) == ()
    urgent = gang("urgent", 1, HIGH)
    assert set(decide([victim, urgent], [SlotFacts("a0", "a")], held, NOW).yields) == {one.id for one in held}


def test_a_warm_slot_is_taken_first_and_an_empty_one_before_anothers() -> None:
    there = [SlotFacts("a0", "a", ("other",)), SlotFacts("a1", "a", ()), SlotFacts("a2", "a", ("mine",))]
    mine = job("j", pending=1, model_key="mine")
    assert holders(decide([mine], there, [], NOW)) == {"a2": "j"}
    assert holders(decide([mine], there[:2], [], NOW)) == {"a1": "j"}


def test_two_jobs_swap_to_the_slots_that_hold_their_models() -> None:
    there = [SlotFacts("a0", "a", ("y",)), SlotFacts("a1", "a", ("x",))]
    both = [job("wants-x", age=5, pending=1, model_key="x"), job("wants-y", pending=1, model_key="y")]
    assert holders(decide(both, there, [], NOW)) == {"a1": "wants-x", "a0": "wants-y"}


VLLM = frozenset({"vllm"})
NEEDS_VLLM = Needs(packages=VLLM)
GB = 10**9


def mixed(num_equipped: int, num_plain: int) -> list[SlotFacts]:
    """Slots of two hosts: `a` has vllm, `b` has no package."""
    equipped = [SlotFacts(f"a{number}", "a", packages=VLLM) for number in range(num_equipped)]
    return equipped + [SlotFacts(f"b{number}", "b", packages=frozenset()) for number in range(num_plain)]


def test_a_job_gets_only_slots_with_its_packages() -> None:
    assert holders(decide([job("j", needs=NEEDS_VLLM)], mixed(2, 3), [], NOW)) == {"a0": "j", "a1": "j"}
    assert set(holders(decide([job("j", needs=NEEDS_VLLM)], slots(2), [], NOW))) == {"a0", "a1"}, (
        "unknown counts as all"
    )
    both = [job("any", age=9, pending=2), job("needy", needs=NEEDS_VLLM)]
    assert holders(decide(both, mixed(1, 2), [], NOW)) == {"b0": "any", "b1": "any", "a0": "needy"}


def test_a_slot_without_its_packages_idles_for_no_job_and_serves_the_next() -> None:
    both = [job("needy", HIGH, needs=NEEDS_VLLM), job("any", LOW)]
    assert holders(decide(both, mixed(1, 1), [lease("needy", "a0")], NOW)) == {"b0": "any"}


def test_only_slots_with_its_packages_are_asked_back_for_a_job() -> None:
    held = [lease("low", slot.id) for slot in mixed(1, 3)]
    low = job("low", LOW, age=9)
    assert tuple(decide([low, job("high", HIGH, needs=NEEDS_VLLM)], mixed(1, 3), held, NOW).yields) == ("lease-low-a0",)
    peer = dataclasses.replace(low, rank=NORMAL)
    assert tuple(decide([peer, job("needy", needs=NEEDS_VLLM)], mixed(1, 3), held, NOW).yields) == ("lease-low-a0",)
    ending = [lease("low", "a0"), lease("low", "b0", ending=True)]
    high = job("high", HIGH, needs=NEEDS_VLLM)
    assert tuple(decide([low, high], mixed(1, 1), ending, NOW).yields) == ("lease-low-a0",), "b0 does not help it"
    own = [lease("high", "a0"), lease("low", "a1"), lease("low", "b0", ending=True)]
    assert tuple(decide([low, high], mixed(2, 1), own, NOW).yields) == ("lease-low-a1",), "it grows there alone"


def test_a_gang_starts_only_where_all_its_slots_have_its_packages() -> None:
    pair = gang("g", 2, needs=NEEDS_VLLM)
    assert holders(decide([pair], mixed(2, 2), [], NOW)) == {"a0": "g", "a1": "g"}
    decisions = decide([pair], mixed(1, 2), [], NOW)
    assert (decisions.grants, decisions.yields) == ((), {})
    assert decisions.explanations == {"g": "needs 2 slots of one host at once; the largest host has 1 online"}


def unlike() -> list[SlotFacts]:
    """Four slots of one host each: a small GPU, a large one, a large one with a label, and a CPU."""
    return [
        SlotFacts("small", "a", memory_bytes=16 * GB, device="cuda"),
        SlotFacts("large", "b", memory_bytes=80 * GB, device="cuda"),
        SlotFacts("labelled", "c", memory_bytes=80 * GB, device="cuda", labels=frozenset({"a100"})),
        SlotFacts("processor", "d", memory_bytes=200 * GB, device="cpu"),
    ]


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (Needs(memory_bytes=40 * GB), {"large", "labelled", "processor"}),
        (Needs(memory_bytes=40 * GB, device="cuda"), {"large", "labelled"}),
        (Needs(labels=frozenset({"a100"})), {"labelled"}),
        (Needs(device="cpu"), {"processor"}),
        (Needs(memory_bytes=300 * GB), set()),
        (Needs(labels=frozenset({"a100", "other"})), set()),
        (Needs(), {"small", "large", "labelled", "processor"}),
    ],
)
def test_a_job_gets_only_slots_that_meet_its_needs(needs: Needs, expected: set[str]) -> None:
    assert set(holders(decide([job("j", needs=needs)], unlike(), [], NOW))) == expected


def test_scarce_slots_are_taken_last() -> None:
    order = ["small", "large", "labelled", "processor"]
    for free in range(1, 5):
        last = unlike()[-free:]
        leases = [lease("other", slot.id) for slot in unlike()[:-free]]
        decisions = decide([job("j", pending=1)], unlike(), leases, NOW)
        expected = min((slot.id for slot in last), key=["small", "large", "processor", "labelled"].index)
        assert holders(decisions) == {expected: "j"}, order


def test_a_gang_leaves_scarce_slots_to_others() -> None:
    plain = [SlotFacts(f"p{number}", "plain", memory_bytes=16 * GB, device="cuda") for number in range(3)]
    scarce = [SlotFacts(f"s{number}", "scarce", memory_bytes=80 * GB, device="cuda") for number in range(2)]
    assert set(holders(decide([gang("g", 2)], scarce + plain, [], NOW))) == {"p0", "p1"}
    picky = gang("g", 2, needs=Needs(memory_bytes=40 * GB))
    assert set(holders(decide([picky], scarce + plain, [], NOW))) == {"s0", "s1"}


def test_a_job_that_waits_for_a_slot_with_its_needs_is_told_which() -> None:
    needs = Needs(VLLM, 40 * GB, "cuda", frozenset({"a100", "nvlink"}))
    assert decide([job("j", needs=needs)], unlike(), [], NOW).explanations == {
        "j": "no slot that is online has what it needs: vllm, 40 GB of memory, device cuda, label a100, label nvlink"
    }
    labelled = job("j", needs=Needs(labels=frozenset({"a100"})))
    decisions = decide([job("other", age=9), labelled], unlike(), [lease("other", "labelled", age=1)], NOW)
    assert decisions.explanations == {
        "j": "number 1 in the queue; the only slot with label a100 is busy with jobs before it"
    }


def test_a_job_that_waits_for_packages_is_told_which() -> None:
    needy = job("j", needs=NEEDS_VLLM)
    assert decide([needy], mixed(0, 2), [], NOW).explanations == {"j": "no slot that is online has what it needs: vllm"}
    decisions = decide([job("other", age=9), needy], mixed(1, 2), [lease("other", "a0", age=1)], NOW)
    assert decisions.explanations == {"j": "number 1 in the queue; the only slot with vllm is busy with jobs before it"}


def test_a_lease_of_an_ended_job_occupies_its_slot() -> None:
    assert decide([job("j")], slots(1), [lease("gone", "a0", ending=True)], NOW).grants == ()


def test_a_lease_on_an_offline_slot_is_no_coming_slot_and_no_victim() -> None:
    held = [lease("low", "away"), lease("low", "a0")]
    decisions = decide([job("low", LOW, age=9), job("high", HIGH)], slots(1), held, NOW)
    assert tuple(decisions.yields) == ("lease-low-a0",)
    held = [lease("low", "away", ending=True), lease("low", "a0")]
    assert tuple(decide([job("low", LOW, age=9), job("high", HIGH)], slots(1), held, NOW).yields) == ("lease-low-a0",)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_the_inputs_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    there = slots(6)
    jobs = [job(f"j{number}", rng.randrange(3), age=rng.randrange(5), pending=rng.randrange(4)) for number in range(8)]
    held = [lease(f"j{rng.randrange(8)}", f"a{number}", working=rng.random() < 0.5) for number in range(3)]
    first = decide(jobs, there, held, NOW)
    for items in (jobs, there, held):
        rng.shuffle(items)
    assert decide(jobs, there, held, NOW) == first


def test_every_waiting_job_has_a_reason() -> None:
    assert decide([job("j")], [], [], NOW).explanations == {"j": "no slot is online"}
    held = [lease("other", "a0", age=1)]
    decisions = decide([job("other", age=9), job("j")], slots(1), held, NOW)
    assert decisions.explanations == {"j": "number 1 in the queue; the only slot is busy with jobs before it"}
