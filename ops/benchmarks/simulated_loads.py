"""What is submitted to a simulated cluster: mixed loads, gangs behind many small trainings, and four projects."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ops.benchmarks.simulated_cluster import CHUNK_SECONDS, SimulatedJob
from scheduler.policy.types import ProjectFacts

_SIZES, _SIZE_WEIGHTS = (1, 2, 4, 8), (62, 12, 8, 18)
_RANK_WEIGHTS = (10, 70, 20)
_DAY = 24 * 3600.0


@dataclass(frozen=True)
class Load:
    """Jobs for a cluster."""

    jobs: list[SimulatedJob]
    hours: float
    """Simulated hours to run for."""
    projects: dict[str, ProjectFacts]
    loading_seconds: float = 20.0
    is_loading_known: bool = True


def mixed(seed: int, num_slots: int, *, bulk_share: float, load: float = 0.92, num_jobs: int = 600) -> Load:
    """Sizes in the shape of published traces: most trainings on one slot, durations with a long tail, daily waves."""
    rng = random.Random(seed)
    jobs = []
    work = 0.0
    for number in range(num_jobs):
        seconds = min(_DAY, rng.lognormvariate(math.log(900), 1.6))
        rank = rng.choices((0, 1, 2), _RANK_WEIGHTS)[0]
        if rng.random() < bulk_share:
            num_chunks = max(1, round(4 * seconds / CHUNK_SECONDS))
            jobs.append(SimulatedJob(f"bulk{number:05}", 0.0, rank, num_chunks=num_chunks))
            work += num_chunks * CHUNK_SECONDS
        else:
            size = rng.choices(_SIZES, _SIZE_WEIGHTS)[0]
            jobs.append(_training(f"training{number:05}", 0.0, size, seconds, rng, rank=rank))
            work += size * seconds
    length = work / (load * num_slots)
    for job in jobs:
        at = rng.random()
        job.arrives = length * (at + 0.1 * math.sin(2 * math.pi * at * max(1.0, length / _DAY)) / (2 * math.pi))
    return Load(sorted(jobs, key=lambda job: job.arrives), 2 * length / 3600, {})


def gangs_behind_singles(seed: int, num_slots: int) -> Load:
    """One-slot trainings for 1.15 of the capacity, and a gang of eight every six hours."""
    rng = random.Random(seed)
    mean = 3600.0
    jobs, now, number = [], 0.0, 0
    while now < 2 * _DAY:
        now += rng.expovariate(1.15 * num_slots / mean)
        seconds = rng.lognormvariate(math.log(mean) - 0.5, 1.0)
        jobs.append(_training(f"single{number:05}", now, 1, min(_DAY, seconds), rng))
        number += 1
    jobs += [_training(f"gang{hour:03}", hour * 3600.0, 8, mean, rng) for hour in range(6, 48, 6)]
    return Load(sorted(jobs, key=lambda job: job.arrives), 48, {})


def four_projects(seed: int, num_slots: int) -> Load:
    """Weights 1, 1, 1, 3, all with work for hours: many small bulk jobs, five endless ones, trainings, and twenty."""
    rng = random.Random(seed)
    endless = int(8 * 3600 * num_slots / CHUNK_SECONDS)
    jobs = [SimulatedJob(f"a{n:04}", 0.0, 1, "a", num_chunks=rng.randint(10, 60)) for n in range(40 * num_slots)]
    jobs += [SimulatedJob(f"b{n}", 0.0, 1, "b", num_chunks=endless) for n in range(5)]
    jobs += [
        _training(f"c{n:04}", 0.0, rng.choice(_SIZES), rng.uniform(300, 1800), rng, project="c")
        for n in range(2 * num_slots)
    ]
    jobs += [SimulatedJob(f"d{n:02}", 0.0, 1, "d", num_chunks=endless) for n in range(20)]
    weights = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 3.0}
    projects = {name: ProjectFacts(weight=weight) for name, weight in weights.items()}
    return Load(jobs, 2.0, projects)


def _training(
    name: str, arrives: float, size: int, seconds: float, rng: random.Random, *, rank: int = 1, project: str = ""
) -> SimulatedJob:
    return SimulatedJob(name, arrives, rank, project, size=size, seconds=seconds, has_limit=rng.random() < 0.5)


def bulk_only(seed: int, num_slots: int, *, is_loading_known: bool) -> Load:
    """Bulk jobs alone, whose models take a minute to load."""
    load = mixed(seed, num_slots, bulk_share=1.0, load=0.9)
    return replace(load, hours=6.0, loading_seconds=60.0, is_loading_known=is_loading_known)


LOADS: dict[str, Callable[[int, int], Load]] = {
    "mixed, 45 % bulk": lambda seed, num_slots: mixed(seed, num_slots, bulk_share=0.45),
    "mixed, 15 % bulk": lambda seed, num_slots: mixed(seed, num_slots, bulk_share=0.15),
    "bulk only, a minute of loading": lambda seed, num_slots: bulk_only(seed, num_slots, is_loading_known=True),
    "the same, its time unknown": lambda seed, num_slots: bulk_only(seed, num_slots, is_loading_known=False),
    "gangs of 8 behind singles": gangs_behind_singles,
    "four projects, 1:1:1:3": four_projects,
}
