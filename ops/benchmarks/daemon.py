"""Run `stoker up` for a benchmark, with one or more warm slots, and read its jobs from its database."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.tables import Chunk, Job, Slot
from jobs.specs.inference import InferenceSpec, parse_spec

STOKER = str(Path(sys.executable).parent / "stoker")


@dataclass(frozen=True)
class Measured:
    """The measurements of one side in one round."""

    seconds: float
    num_rows: int
    num_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Real tokens (no padding) per second."""
        return self.num_tokens / self.seconds


class Daemon:
    """`stoker up` in its own folder, for one spec over one file of rows."""

    def __init__(
        self, folder: Path, rows: list[dict[str, Any]], document: Mapping[str, Any], *, num_slots: int = 1
    ) -> None:
        """
        Args:
            folder: Folder for the input and the daemon's data.
            rows: The job's rows.
            document: The job's spec without its `input.path`.
            num_slots: Number of slots.
        """
        self.folder, self.num_slots = folder, num_slots
        self.data_dir = folder / "data"
        self._input = folder / "rows.jsonl"
        _write(self._input, rows)
        _write(folder / "warm-up.jsonl", rows[:1])
        source = document.get("input", {})
        self._document = {**document, "input": {**source, "path": str(self._input)}}
        self._warm_up = {**document, "input": {**source, "path": str(folder / "warm-up.jsonl")}}
        spec = parse_spec(self._document)
        assert isinstance(spec, InferenceSpec)
        self.spec = spec

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the daemon during the block; its model is warm from the start."""
        command = [STOKER, "up", "--data-dir", str(self.data_dir), "--port", "0", "--slots", str(self.num_slots)]
        up = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert up.stdout is not None
            if not any(line.startswith("stoker ready") for line in up.stdout):
                raise SystemExit(f"`stoker up` ended with exit code {up.wait()}")
            self.submit(self._warm_up)
            yield
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait()

    def command(self, name: str, *arguments: str) -> str:
        """Run a `stoker` command and return what it prints."""
        argv = [STOKER, name, "--data-dir", str(self.data_dir), *arguments]
        return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout

    def database(self) -> Database:
        """The daemon's database."""
        return Database(Settings(data_dir=self.data_dir).resolved_database_url)

    def run_job(self) -> str:
        """Submit the job, wait until it has completed, return its id."""
        return self.submit(self._document)

    def measure(self, job_id: str) -> Measured:
        """Read the measurements of a completed job from the database."""
        with self.database().read() as session:
            job = session.get_one(Job, job_id)
        if str(job.state) != "completed" or job.ended_at is None or job.num_failed:
            raise SystemExit(f"job {job_id} is {job.state}, {job.num_failed} rows failed")
        return Measured(job.ended_at - job.created_at, job.num_rows, job.num_tokens)

    def num_threads(self) -> int:
        """Number of torch threads of each slot."""
        with self.database().read() as session:
            (num_threads,) = set(session.scalars(select(col(Slot.num_threads))))
        return num_threads

    def chunk_ranges(self, job_id: str) -> list[tuple[int, int]]:
        """The chunks of a job, as pairs of first row and end."""
        with self.database().read() as session:
            chunks = session.scalars(select(Chunk).where(col(Chunk.job_id) == job_id).order_by(col(Chunk.start_row)))
            return [(chunk.start_row, chunk.stop_row) for chunk in chunks]

    def results(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The result lines of a job, in row order."""
        path = self.folder / "results.jsonl"
        self.command("results", job_id, "--output", str(path))
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)
        path.unlink()

    def submit(self, document: Mapping[str, Any]) -> str:
        """Submit a spec, wait until its job has completed, return its id."""
        path = self.folder / "spec.json"
        path.write_text(json.dumps(document))
        return self.command("submit", str(path), "--wait").strip().splitlines()[0]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
