"""Random input of the scheduling policy: jobs, slots and leases as a busy and badly behaved cluster would have them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from jobs.specs.needs import Needs
from scheduler.policy.preemption import HOLD_SECONDS, MOST_PREEMPTIONS
from scheduler.policy.types import AGED_SECONDS, BRIEF_SECONDS, JobFacts, LeaseFacts, ProjectFacts, SlotFacts

NOW = 1_000_000.0
PREEMPTABLE_SECONDS = 300.0
_PACKAGES = (frozenset[str](), frozenset({"av"}), frozenset({"vllm"}), frozenset({"av", "vllm"}))
_LABELS = (frozenset[str](), frozenset({"a100"}), frozenset({"a100", "nvlink"}))
_GB = 10**9
_MODELS = ("", "x", "y", "z")


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The input of one decision, at the time `NOW`."""

    jobs: list[JobFacts]
    slots: list[SlotFacts]
    leases: list[LeaseFacts]
    projects: dict[str, ProjectFacts] = field(default_factory=dict)

    def shuffled(self, rng: random.Random) -> PolicyState:
        """The same state in another order."""
        return PolicyState(
            *(rng.sample(facts, len(facts)) for facts in (self.jobs, self.slots, self.leases)), self.projects
        )


def random_state(rng: random.Random, *, num_slots: int, num_jobs: int) -> PolicyState:
    """A state with at most so many slots and jobs; what is frequent differs from state to state."""
    slots = _slots(rng, rng.randint(0, num_slots))
    traits = {
        "elastic": rng.choice((0.0, 0.5, 0.5, 1.0)),
        "ranks": rng.choice(([0, 1, 2], [1], [0, 2, 2], [0, 0, 1])),
        "aged": rng.choice((0.0, 0.0, 0.3)),
        "bounded": rng.choice((0.0, 0.7, 1.0)),
        "picky": rng.choice((0.0, 0.0, 0.4)),
        "projects": rng.choice((("",), ("",), ("a", "b"), ("a", "b", "c"))),
        "largest": rng.choice((1, 2, 4)),
        "promised": rng.choice((0.0, 0.0, 0.3)),
        "timed": rng.choice((0.0, 0.5, 1.0)),
    }
    jobs = [_job(rng, f"job{number:03}", traits) for number in range(rng.randint(0, num_jobs))]
    leases = _leases(rng, slots, jobs)
    if jobs and rng.random() < 0.5:
        slots = [replace(slot, kept_for=rng.choice(jobs).id) if rng.random() < 0.5 else slot for slot in slots]
        leases = [
            replace(lease, yield_for=rng.choice(jobs).id) if lease.ending and rng.random() < 0.7 else lease
            for lease in leases
        ]
    return PolicyState(jobs, slots, leases, {name: _project(rng) for name in "abc" if rng.random() < 0.7})


def _project(rng: random.Random) -> ProjectFacts:
    return ProjectFacts(
        weight=rng.choice((0.0, 0.5, 1.0, 1.0, 3.0)),
        used=rng.choice((0.0, 0.0, 1.5, 20.0)),
        slots=rng.choice((None, None, None, 0, 2, 6)),
        is_exhausted=rng.random() < 0.05,
    )


def _slots(rng: random.Random, num_slots: int) -> list[SlotFacts]:
    num_hosts = rng.choice((1, 2, max(1, num_slots // 2)))
    packages = {host: rng.choice((None, *_PACKAGES)) for host in range(num_hosts)}
    labels = {host: rng.choice(_LABELS) for host in range(num_hosts)}
    is_uniform, are_warm = rng.random() < 0.5, rng.random() < 0.7
    slots = []
    for slot_id in rng.sample(range(1000), num_slots):  # so that the slots of a host are not neighbours by id
        host = rng.randrange(num_hosts)
        slots.append(
            SlotFacts(
                f"slot{slot_id:03}",
                f"host{host}",
                tuple(rng.sample("xyz", rng.randint(0, 2))) if are_warm else (),
                "card" if is_uniform else rng.choice(("card", "card", "old card")),
                None if is_uniform else rng.choice((packages[host],) * 9 + _PACKAGES),
                memory_bytes=0 if is_uniform else rng.choice((16, 16, 80)) * _GB,
                device="cuda" if is_uniform else rng.choice(("cuda", "cuda", "cpu")),
                labels=frozenset() if is_uniform else labels[host],
            )
        )
    return slots


def _job(rng: random.Random, name: str, traits: dict) -> JobFacts:
    elastic = rng.random() < traits["elastic"]
    soon = (NOW + BRIEF_SECONDS / 2, NOW + BRIEF_SECONDS, NOW + 1.5 * BRIEF_SECONDS, NOW + 60)
    return JobFacts(
        name,
        rng.choice(traits["ranks"]),
        NOW - rng.randrange(8),  # some are equally old
        waited_seconds=AGED_SECONDS + rng.choice((0, 1)) if rng.random() < traits["aged"] else 0.0,
        elastic=elastic,
        gang_size=1 if elastic else rng.randint(1, traits["largest"]),
        max_slots=rng.choice((None, None, 1, 3)) if elastic else None,
        pending_chunks=rng.choice((0, 1, 1, 2, 100)) if elastic else 0,
        model_key=rng.choice(_MODELS),
        not_before=rng.choice(soon) if rng.random() < 0.1 else 0.0,
        preemptable_seconds=PREEMPTABLE_SECONDS,
        num_preemptions=rng.choice((0, 0, 0, MOST_PREEMPTIONS - 1, MOST_PREEMPTIONS)),
        remaining_seconds=rng.choice((60.0, 600.0, 601.0, 3600.0)) if rng.random() < traits["bounded"] else None,
        needs=_needs(rng) if rng.random() < traits["picky"] else Needs(),
        project=rng.choice(traits["projects"]),
        entitled=rng.randint(1, 4) if elastic and rng.random() < traits["promised"] else 0,
        work_seconds=rng.choice((0.0, 50.0, 60.0, 61.0, 200.0, 5000.0)) if rng.random() < traits["timed"] else None,
        loading_seconds={kind: rng.choice((0.5, 10.0, 20.0)) for kind in ("card", "old card") if rng.random() < 0.8},
    )


def _needs(rng: random.Random) -> Needs:
    return Needs(
        rng.choice(_PACKAGES),
        rng.choice((0, 0, 40 * _GB)),
        rng.choice((None, None, "cuda", "cpu")),
        rng.choice((_LABELS[0], *_LABELS)),
    )


def _leases(rng: random.Random, slots: list[SlotFacts], jobs: list[JobFacts]) -> list[LeaseFacts]:
    """Leases on some slots, and on a few that are offline. Trainings hold as many as they need, mostly on one host."""
    occupied = rng.choice((0.0, 0.5, 0.7, 0.9, 1.0, 1.0))
    ending = rng.choice((0.0, 0.1, 0.5))
    fresh = rng.choice((0.0, 0.2, 0.8))
    places = [slot.id for slot in slots if rng.random() < occupied]
    if rng.random() < 0.5:
        host_of = {slot.id: slot.host for slot in slots}
        places.sort(key=host_of.__getitem__)
    if rng.random() < 0.3:
        places += [f"away{number}" for number in range(3)]
        rng.shuffle(places)
    older = [job for job in jobs if job.rank > 0] if rng.random() < 0.5 else jobs
    running = rng.sample(older, rng.randint(0, min(len(older), 6 if rng.random() < 0.5 else len(older))))
    leases: list[LeaseFacts] = []
    while places:
        holder = rng.choice(running) if running and rng.random() < 0.97 else None
        is_training = holder is not None and not holder.elastic
        is_ending = rng.random() < ending
        granted_at = NOW - _age(rng, fresh)
        for _ in range(min(len(places), holder.gang_size if is_training else rng.randint(1, 4))):
            leases.append(
                LeaseFacts(
                    f"lease{rng.randrange(10**9):09}",
                    holder.id if holder else "gone",
                    places.pop(),
                    granted_at if is_training else NOW - _age(rng, fresh),
                    working=rng.random() < 0.7,
                    ending=is_ending if rng.random() < 0.95 else not is_ending,
                )
            )
        if is_training and rng.random() < 0.9:
            running.remove(holder)
    return leases


def _age(rng: random.Random, fresh: float) -> float:
    """Seconds for which a lease has been held, often close to a limit."""
    if rng.random() < fresh:
        return rng.choice((0.0, HOLD_SECONDS - 1, HOLD_SECONDS))
    return rng.choice((HOLD_SECONDS, 60.0, PREEMPTABLE_SECONDS - 1, PREEMPTABLE_SECONDS, 3600.0, 3601.0))
