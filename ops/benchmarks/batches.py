"""Measure how a batch file is read: seconds and peak memory of checking, splitting and planning its lines.

    python ops/benchmarks/batches.py [--lines 50000] [--models 2] [--folder /tmp] [--report report.json]

The file is written to the folder. A fresh process reads it like the scheduler, with SQLite and a local store.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# This folder has a file queue.py, which must not hide the module of the standard library.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.data.store_keys import upload_key
from jobs.db import migrations
from jobs.db.database import Database
from jobs.db.states import BatchState, JobState
from jobs.db.tables import StoredFile
from jobs.ledger import jobs as job_ledger
from jobs.ledger.groups import batches
from jobs.ledger.groups.batches import NewBatch
from scheduler.control.planning.planner import plan_job
from scheduler.openai.lifecycle import read_batch

_WORDS = "the quick brown fox jumps over the lazy dog while grey clouds gather above the quiet harbour town"
_MIB = 2**20


def main() -> None:
    """Write the lines, read them in a child process, print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--read-batch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read_batch is not None:
        print(json.dumps(measure(options.read_batch, options.models)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        size = make(folder / "batch.jsonl", options.lines, options.models)
        command = [sys.executable, __file__, "--read-batch", str(folder), "--models", str(options.models)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    if found["rows"] != options.lines:
        raise SystemExit(f"planned {found['rows']} rows of {options.lines} lines")
    found = {"lines": options.lines, "models": options.models, "file_mib": size / _MIB, **found}
    for figure, value in found.items():
        print(f"{figure:<20} {value:>12,.2f}" if isinstance(value, float) else f"{figure:<20} {value:>12,}")
    if options.report is not None:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        options.report.write_text(json.dumps({**found, **machine, "argv": sys.argv[1:]}, indent=1) + "\n")


def make(path: Path, num_lines: int, num_models: int) -> int:
    """Write the batch file, and the models' folders beside it. Returns the size of the file in bytes."""
    with path.open("w", encoding="utf-8") as out:
        for number in range(num_lines):
            body = {"model": f"model-{number % num_models}", "input": f"{number} {_WORDS}"}
            line = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/embeddings", "body": body}
            out.write(json.dumps(line) + "\n")
    return path.stat().st_size


def measure(folder: Path, num_models: int) -> dict[str, float]:
    """Read the batch and plan its jobs."""
    catalogue = {f"model-{number}": {"model": "org/model", "dtype": _dtype(number)} for number in range(num_models)}
    settings = Settings.model_validate({"data_dir": folder, "models": catalogue})
    database, store = Database(settings.resolved_database_url), Store(settings.resolved_store_url)
    migrations.upgrade(database)
    stored = store.put_file(upload_key("file_1"), folder / "batch.jsonl")
    with database.write() as session:
        session.add(
            StoredFile(
                id="file_1", filename="batch.jsonl", purpose="batch", key=stored.key, num_bytes=stored.num_bytes,
                sha256=stored.sha256, created_at=session.time(),
            )
        )  # fmt: skip
    new = NewBatch("/v1/embeddings", "file_1", "24h", 86400, "digest")
    batch = batches.create(database, new, project="default")
    start_mib = _peak_mib()
    began = time.perf_counter()
    read_batch(database, store, settings, batch.id)
    read = time.perf_counter()
    with database.read() as session:
        jobs = batches.jobs_of(session, batch.id)
    for job in jobs:
        plan_job(database, store, settings, job.id)
    planned = time.perf_counter()
    with database.read() as session:
        state = batches.get(session, batch.id).state
        jobs = [job_ledger.get(session, job.id) for job in jobs]
    if state != BatchState.IN_PROGRESS or any(job.state != JobState.QUEUED for job in jobs):
        raise SystemExit(f"the batch is {state}, its jobs {[str(job.state) for job in jobs]}")
    return {
        "rows": sum(job.num_rows for job in jobs),
        "jobs": len(jobs),
        "check_and_split_s": read - began,
        "plan_s": planned - read,
        "peak_mib": _peak_mib(),
        "peak_before_mib": start_mib,
    }


def _dtype(number: int) -> str:
    return ("auto", "float32", "bfloat16", "float16")[number % 4]


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
