"""Measure the scheduling policy: the time of one decision, and what it does to jobs over simulated days.

    python ops/benchmarks/scheduling.py [--rounds 5] [--slots 10 100 1000] [--waiting 3000] [--report FILE.json]
        [--simulate 8] [--simulated-slots 64] [--seed 1]

Each case is decided with as many waiting jobs as slots plus 64, and the largest cluster also with `--waiting` jobs.
Then each load is simulated around the real policy, each for at most `--simulate` seconds of real time (0: not at all);
what is shown says how many simulated hours that were. No database and no device takes part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

# This folder has a file queue.py, which must not hide the module of the standard library.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ops.benchmarks.simulated_cluster import Measured, SimulatedCluster
from ops.benchmarks.simulated_loads import LOADS
from scheduler.policy.decide import decide
from scheduler.policy.types import JobFacts, LeaseFacts, SlotFacts

NOW = 1_000_000.0
SLOTS_OF_A_HOST = 8
HIGH, NORMAL, LOW = 0, 1, 2


@dataclass(frozen=True)
class Cluster:
    """The input of one decision."""

    jobs: list[JobFacts]
    slots: list[SlotFacts]
    leases: list[LeaseFacts]


def cluster(num_slots: int, running: list[JobFacts], waiting: list[JobFacts], **lease: object) -> Cluster:
    """Hosts of eight slots, each held by the running jobs in turns; all are free if no job is running."""
    slots = [SlotFacts(f"slot{number:05}", f"host{number // SLOTS_OF_A_HOST:04}") for number in range(num_slots)]
    leases = [
        replace(LeaseFacts(f"lease{number:05}", running[number % len(running)].id, slot.id, NOW - 3600), **lease)
        for number, slot in enumerate(slots if running else [])
    ]
    return Cluster([*running, *waiting], slots, leases)


def bulk(name: str, number: int, rank: int = NORMAL, age: float = 60.0) -> list[JobFacts]:
    """Inference jobs, each with work for a thousand slots."""
    return [
        JobFacts(f"{name}{index:05}", rank, NOW - age + index / 1e4, pending_chunks=1000) for index in range(number)
    ]


def trainings(name: str, number: int, rank: int = NORMAL, age: float = 60.0, size: int = 1) -> list[JobFacts]:
    """Trainings that need so many slots of one host."""
    return [
        JobFacts(f"{name}{index:05}", rank, NOW - age + index / 1e4, elastic=False, gang_size=size)
        for index in range(number)
    ]


CASES: dict[str, Callable[[int, int], Cluster]] = {
    "all slots free": lambda slots, waiting: cluster(slots, [], bulk("waits", waiting)),
    "all free, gangs of 8 wait": lambda slots, waiting: cluster(slots, [], trainings("gang", waiting, size=8)),
    "bulk jobs hold one slot each": lambda slots, waiting: cluster(
        slots, bulk("runs", slots, age=7200), bulk("waits", waiting)
    ),
    "trainings hold one slot each": lambda slots, waiting: cluster(
        slots, trainings("runs", slots, age=7200), bulk("waits", waiting)
    ),
    "a low job holds all": lambda slots, waiting: cluster(
        slots, bulk("runs", 1, LOW, age=7200), bulk("waits", waiting)
    ),
    "the same, being returned": lambda slots, waiting: cluster(
        slots, bulk("runs", 1, LOW, age=7200), bulk("waits", waiting), ending=True
    ),
    "ten equal jobs hold all": lambda slots, waiting: cluster(
        slots, bulk("runs", 10, age=7200), bulk("waits", waiting)
    ),
    "gangs of 8 behind trainings": lambda slots, waiting: cluster(
        slots, trainings("runs", slots, age=7200), trainings("gang", waiting, size=8)
    ),
    "gangs of 8 behind a low job": lambda slots, waiting: cluster(
        slots, bulk("runs", 1, LOW, age=7200), trainings("gang", waiting, size=8)
    ),
    "gangs of 8 behind ten equal jobs": lambda slots, waiting: cluster(
        slots, bulk("runs", 10, age=7200), trainings("gang", waiting, size=8)
    ),
    "the same, being returned to gangs": lambda slots, waiting: cluster(
        slots, bulk("runs", 10, age=7200), trainings("gang", waiting, size=8), ending=True
    ),
    "high trainings preempt": lambda slots, waiting: cluster(
        slots, trainings("runs", slots, LOW, age=7200), trainings("urgent", waiting, HIGH)
    ),
    "high gangs of 8 preempt": lambda slots, waiting: cluster(
        slots, trainings("runs", slots, LOW, age=7200), trainings("urgent", waiting, HIGH, size=8)
    ),
    "high bulk waits for the minimum": lambda slots, waiting: cluster(
        slots, trainings("runs", slots, LOW, age=7200), bulk("urgent", waiting, HIGH), granted_at=NOW - 100
    ),
    "high gangs wait for the minimum": lambda slots, waiting: cluster(
        slots, trainings("runs", slots, LOW, age=7200), trainings("urgent", waiting, HIGH, size=8), granted_at=NOW - 100
    ),
}


def milliseconds(case: Cluster, num_rounds: int) -> float:
    """Median time of a decision."""
    times = []
    for _ in range(num_rounds):
        started = time.perf_counter()
        decide(case.jobs, case.slots, case.leases, NOW)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def simulate(name: str, *, num_slots: int, seed: int, seconds: float) -> Measured:
    """Simulate one load, and print what came of it."""
    load = LOADS[name](seed, num_slots)
    cluster_of_load = SimulatedCluster(
        load.jobs,
        num_slots=num_slots,
        projects=load.projects,
        loading_seconds=load.loading_seconds,
        is_loading_known=load.is_loading_known,
    )
    found = cluster_of_load.run(hours=load.hours, seconds=seconds)
    print(
        f"\n{name}: {found.hours:.1f} simulated hours; slots held {found.utilisation:.3f}, of that loading "
        f"{found.loading:.3f}; {found.yields_an_hour:.0f} yields an hour; a pass takes {found.pass_ms:.1f} ms, at most "
        f"{found.slowest_pass_ms:.0f}; {found.num_waiting} jobs wait; jobs end after {found.completion:.1f} min (mean)"
    )
    for kind, (number, median, late) in found.waits.items():
        print(f"  {kind:26} {number:6} started, waited {median:8.1f} min (median), {late:8.1f} (95 %)")
    total = sum(facts.weight for facts in load.projects.values())
    for project, facts in load.projects.items():
        share = found.shares.get(project, 0.0)
        print(f"  project {project}: share {share:.3f} of {facts.weight / total:.3f}")
    return found


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--waiting", type=int, default=3000)
    parser.add_argument("--simulate", type=float, default=8.0, metavar="SECONDS")
    parser.add_argument("--simulated-slots", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    sizes = [(num_slots, num_slots + 64) for num_slots in arguments.slots]
    sizes.append((max(arguments.slots), arguments.waiting))
    columns = [f"{num_slots} x {num_waiting}" for num_slots, num_waiting in sizes]
    print(f"{'ms, slots x waiting jobs':34}" + "".join(f"{column:>13}" for column in columns))
    found: dict[str, dict[str, float]] = {}
    for name, make in CASES.items():
        found[name] = {
            column: round(milliseconds(make(*size), arguments.rounds), 2)
            for column, size in zip(columns, sizes, strict=True)
        }
        print(f"{name:34}" + "".join(f"{found[name][column]:13.1f}" for column in columns), flush=True)
    simulated = {}
    for name in LOADS if arguments.simulate > 0 else ():
        seconds = arguments.simulate
        measured = simulate(name, num_slots=arguments.simulated_slots, seed=arguments.seed, seconds=seconds)
        simulated[name] = asdict(measured)
    if arguments.report:
        report = {
            "benchmark": "scheduling",
            "date": date.today().isoformat(),
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "command": " ".join(["python", *sys.argv]),
            "rounds": arguments.rounds,
            "milliseconds": found,
            "simulated": simulated,
        }
        arguments.report.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
