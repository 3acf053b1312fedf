"""A test's own running `stoker up`, with methods to start, use, kill and stop it and to find its processes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from jobs.config.settings import Settings
from jobs.db.database import Database
from scheduler.client.http_client import ApiError, StokerClient
from tests.conftest import BUSY_FACTOR

QUICK = {"STOKER_LEASE_SECONDS": "4", "STOKER_SLOT_SECONDS": "4", "STOKER_DOORBELL_SECONDS": "2"}
"""Short times, so that tests do not wait long for expiry."""
ROLES: Mapping[str, str] = {
    "scheduler": "scheduler.api.serve",
    "supervisor": "worker.host.main",
    "celery": "worker.keeper.app",
    "runner": "-m worker.runner.main_loop",  # a Celery worker's command line names the module as well
    "redis": "redis-server",
    "trainer": "-m worker.training.attempt.process",
}
"""Role -> text in the command line of its processes."""


class Stack:
    """One embedded stack on one data directory."""

    def __init__(self, data_dir: Path, *, slots: int = 1, **environment: str) -> None:
        self.data_dir, self.num_slots = data_dir, slots
        own = {"STOKER_DATA_DIR": str(data_dir), "STOKER_SLOT_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.environment = {**os.environ, **own, **environment}
        self.port = free_port()
        self.up: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Start `stoker up` and wait until it reports that it is ready."""
        argv = [sys.executable, "-m", "scheduler.cli", "up", "--port", str(self.port), "--slots", str(self.num_slots)]
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        log = (self.data_dir.parent / "up.err").open("a")
        self.up = subprocess.Popen(argv, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True)
        log.close()
        assert self.up.stdout is not None
        for line in self.up.stdout:
            if line.startswith("stoker ready at "):
                self.url = line.split()[-1]
                return
        raise AssertionError(f"stoker up ended with {self.up.wait()}: {(self.data_dir.parent / 'up.err').read_text()}")

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        assert self.up is not None
        self.up.send_signal(signal.SIGTERM)
        code = self.up.wait(300)
        assert self.up.stdout is not None
        self.up.stdout.close()
        return code

    def kill(self) -> None:
        """Kill `stoker up` itself with SIGKILL."""
        assert self.up is not None
        self.up.kill()
        self.up.wait()
        assert self.up.stdout is not None
        self.up.stdout.close()

    def run(self, *arguments: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a `stoker` command against this stack; it must end with exit code `code`."""
        argv = [sys.executable, "-m", "scheduler.cli", *arguments]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=1200, **options)
        assert done.returncode == code, f"{arguments} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def submit(self, spec: Mapping[str, Any]) -> str:
        """Submit a spec and return the job's id; keeps trying while the API restarts."""
        with self.client(retry_seconds=300.0) as client:
            return str(client.submit(spec)["id"])

    def client(self, **options: Any) -> StokerClient:
        """A client of this stack's API, with the local key."""
        settings = Settings(data_dir=self.data_dir)
        return StokerClient(self.url, settings.local_key_path.read_text().strip(), **options)

    def database(self) -> Database:
        """A connection to this stack's database, which the caller closes."""
        return Database(Settings(data_dir=self.data_dir).resolved_database_url)

    def await_end(self, job_id: str, seconds: float) -> dict[str, Any]:
        """Wait until the job has ended, and return it; keeps trying while the API restarts."""
        with self.client(retry_seconds=300.0) as client:
            return client.wait(job_id, timeout_seconds=seconds * BUSY_FACTOR)

    def results(self, job_id: str) -> list[dict[str, Any]]:
        """Every result of a job."""
        with self.client() as client:
            return list(client.iter_results(job_id))

    def processes(self) -> dict[int, psutil.Process]:
        """Every running process of this data directory, including `stoker up` itself, by process id."""
        found = {}
        for candidate in psutil.process_iter():
            try:
                if candidate.status() == psutil.STATUS_ZOMBIE or candidate.pid == os.getpid():
                    continue
                # Redis overwrites its environment with its title, but its working directory is in the data directory
                is_redis = Path(candidate.cwd()).is_relative_to(self.data_dir)
                if is_redis or candidate.environ().get("STOKER_DATA_DIR") == str(self.data_dir):
                    found[candidate.pid] = candidate
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it has ended in the meantime
        return found

    def of_role(self, role: str) -> list[psutil.Process]:
        """The running processes of a role."""
        matching = []
        for candidate in self.processes().values():
            try:
                if ROLES[role] in " ".join(candidate.cmdline()):
                    matching.append(candidate)
            except psutil.NoSuchProcess:
                continue  # it has ended in the meantime
        return matching


def free_port() -> int:
    """A free port outside the kernel's ephemeral range, so that no other process gets it while the API restarts."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    kept = [*range(10_000, first), *range(last + 1, 2**16)] or range(10_000, 2**16)  # the range may cover all ports
    while True:
        port = random.SystemRandom().choice(kept)
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) != 0:
                return port


@contextmanager
def bare_stack(data_dir: Path, *, slots: int = 1, **environment: str) -> Iterator[Stack]:
    """A stack that the test starts and stops itself; processes left after a failure are killed."""
    made = Stack(data_dir, slots=slots, **environment)
    try:
        yield made
    finally:
        for left in made.processes().values():
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()


@contextmanager
def nothing_left_at_work(running: Stack, gate: Path) -> Iterator[None]:
    """End all jobs of a stack after the block, also those that wait for the gate in a failed test."""
    try:
        yield
    finally:
        with running.client() as client:
            for job in client.jobs(limit=100):
                if job["ended_at"] is None:
                    with contextlib.suppress(ApiError):  # it has ended in the meantime
                        client.cancel(job["id"])
            gate.touch()
            for job in client.jobs(limit=100):
                client.wait(job["id"], timeout_seconds=300)


@contextmanager
def stack(data_dir: Path, *, slots: int = 1, **environment: str) -> Iterator[Stack]:
    """A running stack; at the end it is stopped and must leave no process behind."""
    running = Stack(data_dir, slots=slots, **environment)
    running.start()
    try:
        yield running
    finally:
        try:
            code = running.stop()
        finally:
            orphans = running.processes()
            for orphan in orphans.values():
                orphan.kill()
    assert code == 0
    assert not orphans, f"left behind: {[orphan.pid for orphan in orphans.values()]}"
