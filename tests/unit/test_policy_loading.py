"""A job loads its model on one more slot only where what it has left to do pays for that."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from scheduler.policy.decide import decide
from scheduler.policy.growth import LOADING_FACTOR
from scheduler.policy.types import JobFacts, LeaseFacts, ProjectFacts, SlotFacts

NOW = 1_000_000.0
LOADING = 20.0


def slots(number: int, *, warm: int = 0, kind: str = "gpu", name: str = "s") -> list[SlotFacts]:
    """Slots, the last ones of which have the model loaded."""
    return [
        SlotFacts(f"{name}{index}", "host", ("m",) if index >= number - warm else (), kind) for index in range(number)
    ]


def job(name: str, work_seconds: float | None, **facts: object) -> JobFacts:
    known = JobFacts(name, 1, NOW - 60, pending_chunks=100, model_key="m", work_seconds=work_seconds)
    return replace(known, **{"loading_seconds": {"gpu": LOADING}, **facts})


def leases(*job_ids: str) -> list[LeaseFacts]:
    return [LeaseFacts(f"l{number}", job_id, f"s{number}", NOW - 60) for number, job_id in enumerate(job_ids)]


def num_granted(jobs: list[JobFacts], places: list[SlotFacts], held: list[LeaseFacts] | None = None) -> Counter[str]:
    return Counter(grant.job_id for grant in decide(jobs, places, held or [], NOW).grants)


@pytest.mark.parametrize(
    ("work_seconds", "number"),
    [(1.0, 1), (LOADING_FACTOR * LOADING, 1), (LOADING_FACTOR * LOADING + 1, 2), (3.5 * LOADING_FACTOR * LOADING, 4)],
)
def test_a_job_loads_its_model_as_often_as_its_work_pays_for(work_seconds: float, number: int) -> None:
    assert num_granted([job("a", work_seconds)], slots(8)) == {"a": number}


def test_what_is_not_known_forbids_nothing() -> None:
    assert num_granted([job("a", None)], slots(8)) == {"a": 8}
    assert num_granted([job("a", 1.0, loading_seconds={})], slots(8)) == {"a": 8}
    assert num_granted([job("a", 1.0, loading_seconds={"cpu": 20.0})], slots(8)) == {"a": 8}


def test_a_job_without_slots_always_starts() -> None:
    jobs = [job(f"j{number}", 0.0) for number in range(5)]
    assert num_granted(jobs, slots(8)) == {f"j{number}": 1 for number in range(5)}


def test_slots_with_the_model_need_not_pay() -> None:
    assert num_granted([job("a", 1.0)], slots(8, warm=3)) == {"a": 3}
    assert num_granted([job("a", 4.5 * LOADING_FACTOR * LOADING)], slots(8, warm=3)) == {"a": 5}


def test_each_kind_of_device_has_its_own_loading_time() -> None:
    places = [*slots(4), *slots(4, kind="cpu", name="t")]
    found = decide([job("a", 130.0, loading_seconds={"gpu": LOADING, "cpu": 1000.0})], places, [], NOW)
    assert sorted(slot_id[0] for grant in found.grants for slot_id in grant.slot_ids) == ["s"] * 3


def test_another_job_takes_the_slots_for_which_one_does_not_pay() -> None:
    assert num_granted([job("a", 1.0), job("b", None)], slots(8)) == {"a": 1, "b": 7}


def test_no_slot_is_asked_back_to_load_a_model_for_which_nothing_pays() -> None:
    low = JobFacts("low", 2, NOW - 90, pending_chunks=100)
    held = leases("a", *["low"] * 7)
    assert decide([job("a", 50.0), low], slots(8), held, NOW).yields == {}
    assert len(decide([job("a", 190.0), low], slots(8), held, NOW).yields) == 3
    assert set(decide([job("a", 50.0), low], slots(8, warm=2), held, NOW).yields) == {"l6", "l7"}
    first = decide([job("new", 50.0), low], slots(8), leases(*["low"] * 8), NOW).yields
    assert list(first.values()) == ["new"], "its first slot is asked back in any case"


def test_no_slot_of_another_project_is_asked_back_for_it_either() -> None:
    rich = [JobFacts("rich", 1, NOW - 90, pending_chunks=100, project="rich")]
    held = leases("a", *["rich"] * 7)
    projects = {"": ProjectFacts(weight=100.0)}
    assert decide([job("a", 50.0), *rich], slots(8), held, NOW, projects).yields == {}
    assert len(decide([job("a", None), *rich], slots(8), held, NOW, projects).yields) > 1


def test_a_slot_that_came_back_for_a_job_is_not_taken_if_it_no_longer_pays() -> None:
    other = replace(job("b", None), project="b")
    place = [replace(slot, kept_for="a") if slot.id == "s1" else slot for slot in slots(2)]
    assert num_granted([job("a", 50.0), other], place, leases("a")) == {"b": 1}
    assert num_granted([job("a", 70.0), other], place, leases("a")) == {"a": 1}
