"""Promises: only what can be kept is admitted, whatever came before and in whatever order."""

from __future__ import annotations

import random

import pytest

from scheduler.forecast.promise_capacity import Due, earliest_promise, is_feasible
from scheduler.policy.promises import MARGIN

NOW = 1_000_000.0


def earliest(dues: list[Due], slot_seconds: float, *, num_slots: int = 4, least: float = 0.0) -> float:
    return earliest_promise(dues, slot_seconds, num_slots=num_slots, least_seconds=least, now=NOW) - NOW


def test_the_first_promise_takes_the_time_of_its_work_and_a_margin() -> None:
    assert earliest([], 400) == pytest.approx(110)
    assert earliest([], 400, least=300) == pytest.approx(330)


def test_later_work_comes_after_what_was_promised() -> None:
    assert earliest([Due(NOW + 110, 400)], 400) == pytest.approx(220)
    assert earliest([Due(NOW + 1000, 400)], 400) == pytest.approx(110), "there is room before it"
    assert earliest([Due(NOW + 120, 400)], 400) == pytest.approx(220), "there is too little room before it"


@pytest.mark.parametrize("seed", range(200))
def test_what_is_admitted_stays_feasible_in_any_order_of_arrivals(seed: int) -> None:
    rng = random.Random(seed)
    num_slots = rng.randint(1, 16)
    admitted: list[Due] = []
    for _ in range(40):
        work = rng.lognormvariate(6, 1.5)
        wanted = NOW + rng.lognormvariate(7, 1.5)
        first = earliest_promise(admitted, work, num_slots=num_slots, least_seconds=0.0, now=NOW)
        assert is_feasible([*admitted, Due(first + 1e-6, work)], num_slots, NOW)
        if wanted < first:
            assert not is_feasible([*admitted, Due(wanted, work)], num_slots, NOW) or first - wanted <= 1.0
        else:
            admitted.append(Due(wanted, work))
        assert is_feasible(admitted, num_slots, NOW)
    assert admitted


@pytest.mark.parametrize("seed", range(50))
def test_work_in_the_order_of_promised_times_keeps_them_all(seed: int) -> None:
    """Each job can use all slots; so many slot-seconds are done by a time as slots and time allow."""
    rng = random.Random(seed)
    admitted: list[Due] = []
    for _ in range(30):
        work, wanted = rng.uniform(1, 1000), NOW + rng.uniform(1, 5000)
        if wanted >= earliest_promise(admitted, work, num_slots=3, least_seconds=work / 3, now=NOW):
            admitted.append(Due(wanted, work))
    done_at = NOW
    for due in sorted(admitted, key=lambda due: due.at):
        done_at += MARGIN * due.slot_seconds / 3
        assert done_at <= due.at + 1e-6
