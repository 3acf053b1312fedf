"""Forecasts: the policy run forward, what is unknown stays unknown, and intervals that hold as often as they say."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from jobs.ledger.timing.forecasts import MOST_ERRORS, ForecastTime
from jobs.ledger.timing.speeds import NOTHING, Measured, SpeedKey, Unit
from jobs.ledger.timing.workloads import Workload
from scheduler.forecast.estimates import Basis, estimate
from scheduler.forecast.intervals import LEAST_RATIOS, Calibration, calibrate, interval
from scheduler.forecast.simulate import Work, simulate
from scheduler.forecast.spans import Moment, Span, forecast
from scheduler.policy.types import JobFacts, LeaseFacts, SlotFacts

NOW = 1_000_000.0
SOON = 0.3  # changes that are close together lead to one pass


def slots_of(*names: str) -> list[SlotFacts]:
    return [SlotFacts(name, name[0], kind="cpu") for name in names]


def bulk(name: str, rows: float | None, *, rank: int = 1, speed: float | None = 1.0, **facts: object) -> Work:
    """A bulk job of chunks of ten rows, submitted in the order of the names."""
    job = JobFacts(name, rank, NOW - 100 + ord(name[0]) / 10, pending_chunks=math.ceil((rows or 100) / 10))
    return Work(replace(job, **facts), rows, {} if speed is None else {"cpu": speed}, chunk_rows=10.0)


def training(name: str, steps: float | None, *, size: int = 1, rank: int = 1, speed: float = 1.0) -> Work:
    job = JobFacts(name, rank, NOW - 100 + ord(name[0]) / 10, elastic=False, gang_size=size)
    return Work(job, steps, {"cpu": speed})


def spans(works: list[Work], slots: list[SlotFacts], leases: list[LeaseFacts] | None = None) -> dict[str, Span]:
    return forecast(works, slots, leases or [], NOW)


def at(moment: Moment | None) -> float:
    """A known time, counted from now."""
    assert moment is not None
    assert not moment.is_bound
    return moment.at - NOW


def test_a_job_ends_when_its_rows_are_done_at_the_speed_of_its_slots() -> None:
    found = spans([bulk("a", 100, speed=2.0)], slots_of("x1", "x2"))["a"]
    assert (at(found.start), at(found.end)) == (0.0, pytest.approx(25.0))
    assert found.slots == ((NOW, 2), (found.end.at, 0))


def test_the_next_job_starts_when_the_one_before_it_ends() -> None:
    found = spans([training("a", 50), training("b", 20), training("c", 5)], slots_of("x1"))
    assert [at(found[name].start) for name in "abc"] == pytest.approx([0, 50, 70], abs=SOON)
    assert [at(found[name].end) for name in "abc"] == pytest.approx([50, 70, 75], abs=2 * SOON)


def test_a_running_job_has_an_end_and_no_start() -> None:
    lease = LeaseFacts("l1", "a", "x1", NOW - 50)
    found = spans([bulk("a", 30, pending_chunks=0)], slots_of("x1"), [lease])["a"]
    assert found.start is None
    assert at(found.end) == pytest.approx(30)


def test_a_high_job_takes_a_slot_from_a_low_one_after_its_chunk() -> None:
    lease = LeaseFacts("l1", "a", "x1", NOW - 50)
    low = bulk("a", 100, rank=2)
    found = spans([low, bulk("b", 40, rank=0)], slots_of("x1"), [lease])
    assert at(found["b"].start) == pytest.approx(5, abs=SOON)
    assert at(found["b"].end) == pytest.approx(45, abs=2 * SOON)
    assert at(found["a"].end) == pytest.approx(140, abs=4 * SOON)


def test_a_fresh_lease_is_asked_for_once_it_may_be() -> None:
    """Otherwise a job that waits would seem to wait for the end of the one before it."""
    leases = [LeaseFacts("l1", "a", "x1", NOW), LeaseFacts("l2", "a", "x2", NOW)]
    found = spans([bulk("a", 1000), bulk("b", 10)], slots_of("x1", "x2"), leases)
    assert at(found["b"].start) == pytest.approx(10 + 5, abs=SOON)


def test_a_gang_starts_when_enough_slots_of_one_host_are_free() -> None:
    leases = [LeaseFacts("l1", "a", "x1", NOW), LeaseFacts("l2", "b", "x2", NOW)]
    works = [training("a", 10), training("b", 60), training("c", 30, size=2)]
    found = spans(works, slots_of("x1", "x2", "y1"), leases)
    assert at(found["c"].start) == pytest.approx(60, abs=SOON)


def test_a_job_that_fits_nowhere_has_no_times() -> None:
    assert spans([training("a", 10, size=3)], slots_of("x1", "y1", "y2"))["a"] == Span(None, None)


def test_behind_a_job_of_unknown_length_only_a_bound_is_said() -> None:
    found = spans([training("a", 50), training("b", None), training("c", 5)], slots_of("x1"))
    assert at(found["a"].end) == pytest.approx(50)
    assert at(found["b"].start) == pytest.approx(50, abs=SOON)
    assert found["b"].end is None
    assert found["c"].start is not None
    assert found["c"].start.is_bound
    assert found["c"].start.at == pytest.approx(NOW + 50, abs=2 * SOON)


def test_a_job_of_unknown_length_leaves_times_that_do_not_depend_on_it() -> None:
    found = spans([training("a", None), training("b", 7)], slots_of("x1", "x2"))
    assert (at(found["b"].start), at(found["b"].end)) == pytest.approx((0, 7))


def test_a_run_that_becomes_too_long_ends_with_bounds() -> None:
    works = [training(chr(97 + number), 10) for number in range(20)]
    found = forecast(works, slots_of("x1"), [], NOW, most_work=100)
    last = found["t"].start
    assert last is not None
    assert last.is_bound
    assert NOW < last.at < NOW + 190


@pytest.mark.parametrize("seed", range(30))
def test_every_known_job_ends_and_no_slot_is_used_twice(seed: int) -> None:
    rng = random.Random(seed)
    slots = [SlotFacts(f"{host}{number}", host, kind="cpu") for host in "xy" for number in range(rng.randint(1, 4))]
    largest = max(Counter(slot.host for slot in slots).values())
    works = []
    for number in range(rng.randint(1, 15)):
        name, rank = f"{chr(97 + number)}", rng.randint(0, 2)
        if rng.random() < 0.4:
            works.append(training(name, rng.uniform(1, 2000), size=rng.randint(1, largest), rank=rank))
        else:
            works.append(bulk(name, rng.uniform(1, 3000), rank=rank, speed=rng.uniform(0.5, 3)))
    before = copy.deepcopy((works, slots))
    result = simulate(works, slots, [], NOW, unknown_ends=False)
    assert (works, slots) == before
    assert result == simulate(works, slots, [], NOW, unknown_ends=False)
    assert set(result.ends) == {work.job.id for work in works}
    assert all(result.starts[name] <= result.ends[name] for name in result.ends)
    changes: dict[float, dict[str, int]] = {}
    for name, steps in result.slots.items():
        for moment, number in steps:
            changes.setdefault(moment, {})[name] = number
    held: dict[str, int] = {}
    for _, changed in sorted(changes.items()):
        held |= changed
        assert sum(held.values()) <= len(slots)


# -- speeds

WORK = Workload("m", "", "fill-mask", "", "auto")
CPU, GPU = SpeedKey(WORK, "cpu", 1, Unit.ROWS), SpeedKey(WORK, "gpu", 1, Unit.ROWS)


def test_what_was_never_measured_is_unknown() -> None:
    other = SpeedKey(replace(WORK, task="embeddings"), "cpu", 1, Unit.ROWS)
    known = {other: NOTHING.with_measured(Measured(other, 10, 1))}
    assert estimate([CPU, GPU], known) == {}
    assert estimate([CPU], {}) == {}


def test_a_job_counts_by_its_own_speed_once_it_has_run_a_while() -> None:
    known = {CPU: NOTHING.with_measured(Measured(CPU, 1000, 100))}
    brief, long = Measured(CPU, 40, 10), Measured(CPU, 240, 60)
    assert estimate([CPU], known, [brief], share_done=0.01)["cpu"].basis is Basis.EQUAL
    assert estimate([CPU], known, [brief], share_done=0.02)["cpu"].per_second == pytest.approx(4)
    assert estimate([CPU], known, [long], share_done=0.0)["cpu"].basis is Basis.OWN


def test_another_kind_of_device_gives_a_wide_estimate() -> None:
    known = {CPU: NOTHING.with_measured(Measured(CPU, 1000, 100))}
    found = estimate([CPU, GPU], known)
    assert (found["cpu"].basis, found["gpu"].basis) == (Basis.EQUAL, Basis.OTHER_DEVICE)
    assert found["gpu"].per_second == found["cpu"].per_second
    assert found["gpu"].slow < found["cpu"].slow / 2
    assert estimate([GPU], known) == {"gpu": found["gpu"]}


def test_before_its_commit_is_known_a_hub_id_has_its_latest_speed() -> None:
    known = {}
    for commit, rows in (("old", 100), ("new", 700)):
        key = replace(CPU, workload=replace(WORK, revision=commit))
        known[key] = NOTHING.with_measured(Measured(key, rows, 100))
    assert estimate([CPU], known)["cpu"].per_second == pytest.approx(7)
    pinned = replace(CPU, workload=replace(WORK, revision="old"))
    assert estimate([pinned], known)["cpu"].per_second == pytest.approx(1)


# -- intervals


@pytest.mark.parametrize(("bias", "spread"), [(1.0, 0.2), (1.3, 0.6), (0.7, 0.8)])
def test_intervals_hold_in_four_of_five_cases(bias: float, spread: float) -> None:
    rng = random.Random(7)
    ratios: list[float] = []
    inside = []
    for _ in range(4000):
        said = rng.lognormvariate(6, 1.5)
        actual = max(0.0, (said + 60) * bias * rng.lognormvariate(0, spread) - 60)
        answer = interval(Moment(NOW + said), NOW, calibrate(ratios[-MOST_ERRORS:]))
        if answer.latest is not None:
            inside.append(answer.includes(NOW + actual))
        ratio = answer.ratio(NOW + actual)
        assert ratio is not None
        ratios.append(ratio)
    assert len(inside) > 3000
    assert 0.77 <= sum(map(bool, inside)) / len(inside) <= 0.83


def test_no_interval_is_said_before_enough_was_compared() -> None:
    assert calibrate([1.0] * (LEAST_RATIOS - 1)) is None
    assert calibrate([1.0] * LEAST_RATIOS) == Calibration(1.0, 1.0)
    assert interval(Moment(NOW + 5), NOW, None) == ForecastTime(NOW, NOW + 5, None, None)


def test_a_very_wide_interval_has_no_later_end() -> None:
    answer = interval(Moment(NOW + 240), NOW, Calibration(1.1, 22.0))
    assert (answer.at, answer.earliest, answer.latest) == (NOW + 240, pytest.approx(NOW + 270), None)
    bound = interval(Moment(NOW + 240, is_bound=True), NOW, Calibration(0.7, 1.6))
    assert bound == ForecastTime(NOW, None, NOW + 240, None)
