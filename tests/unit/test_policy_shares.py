"""Slots are shared between projects by one measure: what each holds and has used, for its weight."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.policy.decide import decide
from scheduler.policy.preemption import HOLD_SECONDS
from scheduler.policy.shares import MARGIN, MOST_ASKS
from scheduler.policy.types import Decisions, JobFacts, LeaseFacts, ProjectFacts, SlotFacts

NOW = 1_000_000.0
HIGH, NORMAL = 0, 1


def bulk(project: str, number: int = 0, *, age: float = 0.0, rank: int = NORMAL, **fields: object) -> JobFacts:
    return JobFacts(f"{project}{number}", rank, NOW - age, **{"pending_chunks": 1000, "project": project, **fields})


def training(project: str, number: int = 0, size: int = 1, *, age: float = 0.0) -> JobFacts:
    return JobFacts(f"{project}{number}", NORMAL, NOW - age, elastic=False, gang_size=size, project=project)


def slots(count: int) -> list[SlotFacts]:
    return [SlotFacts(f"s{number:02}", f"host{number // 8}") for number in range(count)]


def held(*job_ids: str) -> list[LeaseFacts]:
    return [LeaseFacts(f"lease{n:02}", job_id, f"s{n:02}", NOW - 3600) for n, job_id in enumerate(job_ids)]


def granted(decisions: Decisions) -> Counter[str]:
    return Counter(grant.job_id[0] for grant in decisions.grants for _ in grant.slot_ids)


# -- one decision


def test_free_slots_go_to_projects_by_weight_however_many_jobs_each_has() -> None:
    jobs = [bulk("a", number, age=9) for number in range(50)] + [bulk("b"), bulk("c")]
    given_out = granted(decide(jobs, slots(20), [], NOW, {"c": ProjectFacts(weight=3)}))
    assert given_out == {"a": 4, "b": 4, "c": 12}


def test_what_was_used_lately_counts_as_slots() -> None:
    jobs = [bulk("a"), bulk("b")]
    assert granted(decide(jobs, slots(20), [], NOW, {"a": ProjectFacts(used=10.0)})) == {"a": 5, "b": 15}


def test_a_project_without_others_gets_all() -> None:
    assert granted(decide([bulk("a")], slots(4), [], NOW, {"a": ProjectFacts(weight=0, used=100.0)})) == {"a": 4}


def test_weight_zero_gets_what_no_other_can_use() -> None:
    jobs = [bulk("a", age=9), bulk("b", pending_chunks=3)]
    assert granted(decide(jobs, slots(4), [], NOW, {"a": ProjectFacts(weight=0)})) == {"a": 1, "b": 3}


def test_a_poorer_project_asks_a_few_slots_of_a_richer_one_at_a_time() -> None:
    jobs = [bulk("a", age=9), bulk("b")]
    decisions = decide(jobs, slots(40), held(*["a0"] * 40), NOW)
    assert len(decisions.yields) == MOST_ASKS
    assert set(decisions.yields.values()) == {"b0"}
    even = decide(jobs, slots(40), held(*["a0"] * 20, *["b0"] * 20), NOW)
    assert even.yields == {}
    fresh = [replace(lease, granted_at=NOW - HOLD_SECONDS + 1) for lease in held(*["a0"] * 40)]
    assert decide(jobs, slots(40), fresh, NOW).yields == {}


def test_nobody_is_asked_within_the_margin() -> None:
    jobs = [bulk("a", age=9), bulk("b")]
    # After one slot has moved, 52 stand against 49: more than the margin; 51 against 50 are not.
    assert len(decide(jobs, slots(101), held(*["a0"] * 53, *["b0"] * 48), NOW).yields) == 1
    assert decide(jobs, slots(101), held(*["a0"] * 52, *["b0"] * 49), NOW).yields == {}
    assert 51 / 50 < MARGIN < 52 / 49


def test_guaranteed_slots_come_before_any_measure() -> None:
    jobs = [bulk("a", age=9), bulk("b")]
    facts = {"a": ProjectFacts(used=100.0, slots=3)}
    assert granted(decide(jobs, slots(4), [], NOW, facts)) == {"a": 3, "b": 1}
    assert len(decide(jobs, slots(6), held(*["b0"] * 6), NOW, facts).yields) == 3
    assert decide(jobs, slots(3), held(*["a0"] * 3), NOW, facts).yields == {}, "they are not asked back"


def test_trainings_hold_no_more_than_the_slots_of_their_project() -> None:
    facts = {"a": ProjectFacts(slots=3)}
    jobs = [training("a", number, age=9 - number) for number in range(5)]
    decisions = decide(jobs, slots(8), [], NOW, facts)
    assert granted(decisions) == {"a": 3}
    assert decisions.explanations["a3"] == "its project's trainings may hold 3 slots at once"
    assert granted(decide([*jobs, bulk("a", 9)], slots(8), [], NOW, facts)) == {"a": 8}, "bulk borrows the others"
    gang = decide([training("a", 0, 4), training("a", 1, 2)], slots(8), [], NOW, facts)
    assert [grant.job_id for grant in gang.grants] == ["a1"]


def test_a_project_that_used_its_hours_gets_no_slot_and_gives_its_own_away() -> None:
    facts = {"a": ProjectFacts(is_exhausted=True)}
    decisions = decide([bulk("a")], slots(2), [], NOW, facts)
    assert (decisions.grants, decisions.explanations) == (
        (),
        {"a0": "its project has used its GPU hours of this month"},
    )
    assert len(decide([bulk("a", age=9), bulk("b")], slots(2), held("a0", "a0"), NOW, facts).yields) == 2


def test_priorities_stand_above_shares() -> None:
    jobs = [bulk("a", rank=HIGH), bulk("b")]
    assert granted(decide(jobs, slots(4), [], NOW, {"a": ProjectFacts(used=1e6)})) == {"a": 4}


def test_in_a_project_each_job_may_keep_its_part_of_the_projects_slots() -> None:
    of_a = [bulk("a", number, age=9 - number) for number in range(2)]
    jobs = [*of_a, bulk("b", age=20)]
    leases = held(*["a0"] * 4, *["b0"] * 4)
    decisions = decide(jobs, slots(8), leases, NOW)
    assert decisions.yields.keys() <= {lease.id for lease in leases[:4]}, "b has no more than a"
    assert set(decisions.yields.values()) == {"a1"}


# -- over time


@dataclass
class Backlog:
    """Bulk jobs that never run dry: a lease may be returned after each chunk."""

    slots: list[SlotFacts]
    jobs: list[JobFacts]
    projects: dict[str, ProjectFacts]
    now: float = NOW
    leases: list[LeaseFacts] = field(default_factory=list)
    moves: list[tuple[str, str, str]] = field(default_factory=list)
    """(slot, from whom, for whom) of each lease that was asked to yield."""

    def step(self) -> None:
        """Decide, and end what was asked to yield; a decision every half of the time a lease must be held."""
        decisions = decide(self.jobs, self.slots, self.leases, self.now, self.projects)
        for grant in decisions.grants:
            for slot_id in grant.slot_ids:
                self.leases.append(LeaseFacts(f"{slot_id}-{self.now}", grant.job_id, slot_id, self.now))
        kept = {}
        for lease in self.leases:
            if lease.id in decisions.yields:
                kept[lease.slot_id] = decisions.yields[lease.id]
                self.moves.append((lease.slot_id, lease.job_id, decisions.yields[lease.id]))
        self.leases = [lease for lease in self.leases if lease.id not in decisions.yields]
        self.slots = [replace(slot, kept_for=kept.get(slot.id)) for slot in self.slots]
        self.now += HOLD_SECONDS / 2

    def held(self) -> Counter[str]:
        of = {job.id: job.project for job in self.jobs}
        return Counter(of[lease.job_id] for lease in self.leases)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 40), st.lists(st.sampled_from((1.0, 2.0, 3.0)), min_size=2, max_size=4), st.randoms())
def test_a_backlog_comes_to_rest_near_the_shares(num_slots: int, weights: list[float], rng: random.Random) -> None:
    """The first project has all slots and most jobs; the others arrive later."""
    names = "abcd"[: len(weights)]
    projects = {name: ProjectFacts(weight=weight) for name, weight in zip(names, weights, strict=True)}
    cluster = Backlog(slots(num_slots), [bulk("a", n, age=99) for n in range(20)], projects)
    cluster.step()
    cluster.jobs += [bulk(name, n, age=rng.random()) for name in names[1:] for n in range(rng.randint(1, 3))]
    for _ in range(3 * num_slots):
        cluster.step()
    before = len(cluster.moves)
    for _ in range(10):
        cluster.step()
    assert len(cluster.moves) == before, "nothing moves any more"
    for name, weight in zip(names, weights, strict=True):
        entitled = num_slots * weight / sum(weights)
        assert abs(cluster.held()[name] - entitled) <= 1 + MARGIN * weight * len(weights) / 2
    taken = [(giver[0], taker[0]) for _, giver, taker in cluster.moves]
    assert not any((taker, giver) in taken for giver, taker in taken if giver != taker), "no slot moves back and forth"


def test_over_an_hour_no_project_is_far_from_its_share() -> None:
    """Four projects with many small, few endless, and some jobs, of weights 1, 1, 1 and 3; leases end now and then."""
    rng = random.Random(1)
    weights = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 3.0}
    jobs = [bulk(name, n, age=rng.random() * 99) for name, many in zip("abcd", (60, 5, 20, 20), strict=True)
            for n in range(many)]  # fmt: skip
    cluster = Backlog(slots(48), jobs, {name: ProjectFacts(weight=weight) for name, weight in weights.items()})
    total: Counter[str] = Counter()
    for number in range(720):
        cluster.step()
        if number >= 60:
            total.update(cluster.held())
        cluster.leases = [lease for lease in cluster.leases if rng.random() > 0.01]
    for name, weight in weights.items():
        error = abs(total[name] / total.total() - weight / 6)
        assert error <= 1 / 48 + 0.02


def test_an_idle_projects_share_is_used_by_the_others() -> None:
    cluster = Backlog(slots(8), [bulk("a"), bulk("b", pending_chunks=0)], {"b": ProjectFacts(weight=9.0)})
    cluster.step()
    assert cluster.held() == {"a": 8}
