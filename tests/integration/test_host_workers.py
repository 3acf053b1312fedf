"""`stoker worker` with real Celery workers on a real Redis: what an operator sees when processes end or die."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from sqlalchemy import select
from sqlmodel import col

from jobs.child_modules import python_module
from jobs.config.settings import Settings
from jobs.db import migrations
from jobs.db.database import Database
from jobs.db.states import JobState, LeaseState, SlotState
from jobs.db.tables import Lease, Slot
from jobs.errors import Conflict
from jobs.ledger import overdue, slots
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.queue import connect, make_app, queue_name, ring
from tests.conftest import RedisServer, wait_until
from tests.support.frozen import frozen
from tests.support.leased_job import LeasedJob
from tests.support.tiny import tiny_masked_lm
from worker.children import RUNNER_MODULE
from worker.keeper.mailbox import make_ring

_ROOT = Path(__file__).parents[2]


class Host:
    """A supervisor, and a scheduler as small as can be: it grants free slots and requeues jobs."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.settings, self.log_path = settings, log
        self.database = Database(settings.resolved_database_url)
        self.app = make_app(settings)
        self.supervisor: subprocess.Popen[bytes] | None = None
        self.seen: dict[int, psutil.Process] = {}

    def start(
        self, runner_module: str = "tests.support.standin_runner", *, num_slots: int = 1, **environment: str
    ) -> None:
        self.settings = self.settings.model_copy(update={"slots": num_slots})
        fields = ("data_dir", "database_url", "redis_url", "lease_seconds", "grace_seconds", "slots", "host_name")
        settings = {f"STOKER_{name.upper()}": str(getattr(self.settings, name)) for name in fields}
        environ = {**os.environ, **settings, "STOKER_INPUT_ROOTS": '["/"]', **environment}
        with self.log_path.open("ab") as log:
            self.supervisor = subprocess.Popen(
                [sys.executable, "-m", "worker.host.main", "--runner-module", runner_module],
                cwd=_ROOT, env=environ, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def processes(self) -> list[psutil.Process]:
        """The supervisor's living descendants: spawn helpers, Celery workers, runners."""
        assert self.supervisor is not None
        found = psutil.Process(self.supervisor.pid).children(recursive=True)
        self.seen |= {child.pid: child for child in found}
        return found

    def workers(self) -> list[psutil.Process]:
        """The Celery workers, in the order of their slots."""
        found = [child for child in self.processes() if "worker.keeper.app" in _command(child)]
        return sorted(found, key=lambda child: _command(child)[_command(child).index("--slot") + 1])

    def runner_of(self, worker: psutil.Process) -> psutil.Process:
        found: list[psutil.Process] = []

        def find() -> bool:
            self.processes()
            found[:] = [child for child in worker.children() if "tests.support.standin_runner" in _command(child)]
            return bool(found)

        wait_until(find, "the worker has a runner")
        return found[0]

    def assert_nothing_is_left(self) -> None:
        wait_until(lambda: not [child for child in self.seen.values() if _lives(child)], "no process is left behind")

    def slots(self) -> dict[str, Slot]:
        with self.database.read() as session:
            return {slot.id: slot for slot in slots.list_slots(session)}

    def wait_online(self, count: int) -> None:
        def online() -> bool:
            return sum(slot.state == SlotState.ONLINE for slot in self.slots().values()) == count

        wait_until(online, f"{count} slots are online")

    # -- work

    def job(self, folder: Path, model: str, *, num_rows: int = 4, chunk_rows: int = 2) -> LeasedJob:
        records = [{"id": f"r{row}", "text": f"text {row}"} for row in range(num_rows)]
        return LeasedJob(self.database, self.settings, folder, records, chunk_rows=chunk_rows, model=model)

    def grant(self, job: LeasedJob, slot_id: str, *, times: int = 1) -> str:
        grant = Grant(job.job_id, (slot_id,))
        (lease_id,) = grants.grant(self.database, grant, lease_seconds=self.settings.lease_seconds)
        for _ in range(times):
            ring(self.app, slot_id, lease_id)
        return lease_id

    def lease(self, lease_id: str) -> Lease:
        with self.database.read() as session:
            return session.get_one(Lease, lease_id)

    def wait_lease(self, lease_id: str, state: LeaseState) -> Lease:
        wait_until(lambda: self.lease(lease_id).state == state, f"the lease is {state}")
        return self.lease(lease_id)

    def schedule_until_done(self, job: LeasedJob, meanwhile: Callable[[], None] = lambda: None) -> None:
        def step() -> bool:
            meanwhile()
            leases.expire_dead(self.database, self.settings)
            overdue.requeue_idle(self.database)
            for again in leases.unanswered(self.database, self.settings):
                ring(self.app, again.slot_id, again.lease_id)
            with self.database.read() as session:
                live = col(Lease.state).in_([LeaseState.GRANTED, LeaseState.ACTIVE])
                busy = set(session.scalars(select(col(Lease.slot_id)).where(live)))
            for slot in self.slots().values():
                if slot.state == SlotState.ONLINE and slot.id not in busy and "pending" in job.states():
                    try:
                        self.grant(job, slot.id)
                    except Conflict:
                        continue
            return job.job().state == JobState.FINALIZING

        wait_until(step, "all chunks are done")

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.supervisor is not None
        self.processes()
        self.supervisor.send_signal(signal.SIGTERM)
        return self.supervisor.wait(300)


@pytest.fixture
def host(settings: Settings, redis_url: str, tmp_path: Path) -> Iterator[Host]:
    """A host that is not started yet, its database migrated."""
    changes: dict[str, Any] = {"redis_url": redis_url, "lease_seconds": 4.0, "host_name": "here"}
    host = Host(settings.model_copy(update=changes), tmp_path / "worker.log")
    migrations.upgrade(host.database)
    yield host
    if host.supervisor is not None and host.supervisor.poll() is None:
        host.processes()
        host.supervisor.send_signal(signal.SIGTERM)
        host.supervisor.send_signal(signal.SIGTERM)
        try:
            host.supervisor.wait(300)
        except subprocess.TimeoutExpired:
            host.supervisor.kill()
            host.supervisor.wait()
    for child in host.seen.values():
        if _lives(child):
            child.kill()
    host.app.close()
    host.database.close()


def test_both_slots_share_a_job_and_end_in_order(host: Host, tmp_path: Path) -> None:
    host.start(num_slots=2, STOKER_LABELS='["spot", "eu.1"]')
    host.wait_online(2)
    assert [(slot.id, slot.device, slot.num_threads >= 1, slot.labels) for slot in host.slots().values()] == [
        ("here-cpu0", "cpu", True, ["spot", "eu.1"]), ("here-cpu1", "cpu", True, ["spot", "eu.1"]),
    ]  # fmt: skip
    job = host.job(tmp_path, "obey", num_rows=60, chunk_rows=1)
    host.schedule_until_done(job)
    assert [result.row_index for result in job.results()] == list(range(60))
    assert host.stop() == 0
    assert {slot.state for slot in host.slots().values()} == {SlotState.OFFLINE}
    host.assert_nothing_is_left()
    assert "Traceback" not in host.log


def test_a_message_delivered_three_times_runs_once(host: Host, tmp_path: Path) -> None:
    host.start()
    host.wait_online(1)
    job = host.job(tmp_path, "obey")
    lease_id = host.grant(job, "here-cpu0", times=3)
    host.wait_lease(lease_id, LeaseState.RELEASED)
    later = host.job(tmp_path, "obey")
    host.wait_lease(host.grant(later, "here-cpu0"), LeaseState.RELEASED)
    assert job.job().num_done == 4


def _rings_gone_wrong(queue: str) -> dict[str, bytes]:
    """Messages in a slot's queue that differ in one thing from a ring."""
    good = make_ring("lease_that_never_was", queue)
    headers, properties = good["headers"], good["properties"]
    wrong: dict[str, Any] = {
        "another task": {**good, "headers": {**headers, "task": "celery.chord"}},
        "no headers": {**good, "headers": None},
        "headers that are a list": {**good, "headers": ["task"]},
        "no properties": {name: value for name, value in good.items() if name != "properties"},
        "another encoding": {**good, "properties": {**properties, "body_encoding": "rot13"}},
        "a body that is not base64": {**good, "body": "%%%"},
        "a pickle": {**good, "body": base64.b64encode(b"\x80\x04N.").decode(), "content-type": "application/x-pickle"},
        "wrong arguments": {**good, "body": base64.b64encode(b"[[1, 2], {}, {}]").decode()},
        "no arguments": {**good, "body": base64.b64encode(b"{}").decode()},
        "a number": 7,
        "an object of kombu's": {"__type__": "decimal", "__value__": "x"},
    }
    raw = {"no JSON": b"hello", "no text": b"\xff\xfe", "nothing": b"", "deep": b"[" * 100_000}
    return {**{name: orjson.dumps(message) for name, message in wrong.items()}, **raw}


def test_a_message_that_is_no_ring_is_dropped_and_harms_nothing(host: Host, tmp_path: Path) -> None:
    host.start()
    host.wait_online(1)
    incarnation = host.slots()["here-cpu0"].incarnation
    queue = queue_name("here-cpu0")
    messages = _rings_gone_wrong(queue)
    with connect(host.settings) as client:
        for message in messages.values():
            client.lpush(f"stoker:{queue}", message)
        job = host.job(tmp_path, "obey")
        host.wait_lease(host.grant(job, "here-cpu0"), LeaseState.RELEASED)
        assert job.job().num_done == 4
        assert client.hlen("stoker:unacked") == 0, "a dropped message does not come back in an hour"
        assert not client.keys("*pidbox*"), "nothing listens to remote control"
    assert host.slots()["here-cpu0"].incarnation == incarnation, "the worker that got them is the one that works on"
    dropped = [line for line in host.log.splitlines() if "dropped a message" in line]
    assert len(dropped) == len(messages), "each is logged once"
    assert "Traceback" not in host.log


def test_kill_9_of_a_celery_worker_ends_its_runner_and_costs_one_lease(host: Host, tmp_path: Path) -> None:
    host.start()
    host.wait_online(1)
    job = host.job(tmp_path, "wait")
    lease_id = host.grant(job, "here-cpu0")
    host.wait_lease(lease_id, LeaseState.ACTIVE)
    worker = host.workers()[0]
    runner = host.runner_of(worker)
    incarnation = host.slots()["here-cpu0"].incarnation
    worker.send_signal(signal.SIGKILL)
    wait_until(lambda: not _lives(runner), "the runner went with its keeper")
    lease = host.wait_lease(lease_id, LeaseState.EXPIRED)
    assert lease.end_reason == "its worker was restarted", "nobody had to wait for the lease to run out"
    wait_until(lambda: host.slots()["here-cpu0"].incarnation != incarnation, "a new worker owns the slot")
    again = host.job(tmp_path, "obey")
    host.wait_lease(host.grant(again, "here-cpu0"), LeaseState.RELEASED)
    assert again.job().num_done == 4


@pytest.mark.soak
def test_kill_9_of_workers_and_runners_again_and_again_loses_no_row(host: Host, tmp_path: Path) -> None:
    host.start(num_slots=2)
    host.wait_online(2)
    job = host.job(tmp_path, "obey", num_rows=300, chunk_rows=1)
    kills_at = [30, 80, 130, 180]

    def kill() -> None:
        if kills_at and job.job().num_done >= kills_at[0] and len(workers := host.workers()) == 2:
            if len(kills_at) % 2:
                host.runner_of(workers[0]).kill()
            else:
                workers[1].kill()
            del kills_at[0]

    host.schedule_until_done(job, meanwhile=kill)
    assert len(kills_at) <= 2, "a runner and a worker fell at least; on a fast machine the job may end before the rest"
    assert [result.row_index for result in job.results()] == list(range(300))
    assert job.job().num_done == 300


def test_the_real_runner_computes_and_keeps_its_model_warm(host: Host, tmp_path: Path) -> None:
    host.start(RUNNER_MODULE)
    host.wait_online(1)
    model = str(tiny_masked_lm(tmp_path / "model"))
    records = [{"id": f"r{row}", "text": f"the {row} [MASK]"} for row in range(20)]
    job = LeasedJob(host.database, host.settings, tmp_path, records, chunk_rows=4, model=model)
    lease = host.wait_lease(host.grant(job, "here-cpu0"), LeaseState.RELEASED)
    assert lease.end_reason == "drained"
    assert [result.row_index for result in job.results()] == list(range(20))
    assert not any(result.error for result in job.results())
    key = job.job().model_key
    wait_until(lambda: host.slots()["here-cpu0"].warm_models == [key], "the scheduler knows which slot is warm")
    wait_until(lambda: "recorded 20 rows" in host.log, "what the runner logs is in the worker's log")
    assert host.stop() == 0
    host.assert_nothing_is_left()


def test_sigterm_gives_leases_back_in_order(host: Host, tmp_path: Path) -> None:
    host.start()
    host.wait_online(1)
    job = host.job(tmp_path, "wait")
    lease_id = host.grant(job, "here-cpu0")
    host.wait_lease(lease_id, LeaseState.ACTIVE)
    host.runner_of(host.workers()[0])
    assert host.stop() == 0
    lease = host.lease(lease_id)
    assert lease.state == LeaseState.RELEASED
    assert set(job.states()) == {"pending"}
    host.assert_nothing_is_left()


def test_sigterm_kills_what_does_not_stop_within_the_grace(host: Host, tmp_path: Path) -> None:
    host.settings = host.settings.model_copy(update={"grace_seconds": 0.5})
    host.start()
    host.wait_online(1)
    lease_id = _lease_on_a_deaf_runner(host, tmp_path)
    assert host.stop() == 0
    assert host.lease(lease_id).state == LeaseState.RELEASED
    host.assert_nothing_is_left()


def test_a_second_signal_kills_at_once(host: Host, tmp_path: Path) -> None:
    host.settings = host.settings.model_copy(update={"grace_seconds": 600.0})
    host.start(num_slots=2)
    host.wait_online(2)
    _lease_on_a_deaf_runner(host, tmp_path)
    host.processes()
    assert host.supervisor is not None
    host.supervisor.send_signal(signal.SIGINT)
    wait_until(lambda: "ending the worker of here-cpu1" in host.log, "the first signal is taken")
    host.supervisor.send_signal(signal.SIGINT)
    assert host.supervisor.wait(300) == 0
    host.assert_nothing_is_left()


def test_kill_9_of_the_supervisor_leaves_no_orphan_and_gives_leases_back(host: Host, tmp_path: Path) -> None:
    host.start(num_slots=2)
    host.wait_online(2)
    job = host.job(tmp_path, "wait")
    lease_id = host.grant(job, "here-cpu0")
    host.wait_lease(lease_id, LeaseState.ACTIVE)
    for worker in host.workers():
        host.runner_of(worker)
    assert host.supervisor is not None
    host.supervisor.kill()
    host.supervisor.wait()
    host.assert_nothing_is_left()
    assert host.lease(lease_id).state == LeaseState.RELEASED
    assert {slot.state for slot in host.slots().values()} == {SlotState.OFFLINE}


def test_a_worker_stopped_beyond_its_lease_does_not_come_back_as_a_zombie(host: Host, tmp_path: Path) -> None:
    """SIGSTOP of keeper and runner, the reaper takes the lease away, SIGCONT: the runner must die, the slot live on."""
    host.settings = host.settings.model_copy(update={"lease_seconds": 1.0})
    host.start()
    host.wait_online(1)
    lease_id = _lease_on_a_deaf_runner(host, tmp_path)
    worker = host.workers()[0]
    runner = host.runner_of(worker)
    with frozen(runner.pid, worker.pid):
        wait_until(lambda: leases.expire_dead(host.database, host.settings) == [lease_id], "the reaper takes the lease")
    wait_until(lambda: not _lives(runner), "the zombie is killed")
    again = host.job(tmp_path, "obey")
    host.wait_lease(host.grant(again, "here-cpu0"), LeaseState.RELEASED)
    assert _lives(worker)


def test_work_goes_on_when_redis_comes_back_empty(host: Host, tmp_path: Path, redis_server: RedisServer) -> None:
    host.start()
    host.wait_online(1)
    redis_server.kill()
    for file in redis_server.folder.glob("**/appendonly*"):
        if file.is_file():
            file.unlink()
    redis_server.start()
    job = host.job(tmp_path, "obey")
    host.schedule_until_done(job)


def test_a_worker_started_before_the_database_waits_and_logs_it_once(settings: Settings, host: Host) -> None:
    later = f"sqlite:///{settings.data_dir.parent / 'later.db'}"
    host.settings = host.settings.model_copy(update={"database_url": later})
    host.database.close()
    host.database = Database(later)
    host.start()
    wait_until(lambda: "waiting for the database and Redis" in host.log, "it says that it waits")
    migrations.upgrade(host.database)
    host.wait_online(1)
    assert host.log.count("waiting for the database and Redis") == 1


def test_two_supervisors_of_one_name_do_not_fight_for_ever(host: Host, tmp_path: Path) -> None:
    host.start(num_slots=2)
    host.wait_online(2)
    first = host.supervisor
    assert first is not None
    host.processes()
    host.start(num_slots=2, STOKER_SLOT_SECONDS="60")
    assert first.wait(300) == 1
    assert "belongs to another worker now" in host.log
    host.wait_online(2)
    job = host.job(tmp_path, "obey")
    host.wait_lease(host.grant(job, "here-cpu0"), LeaseState.RELEASED)


def test_a_runner_that_cannot_start_breaks_its_slot_with_a_reason(host: Host) -> None:
    host.start(STANDIN_START="fail")
    wait_until(lambda: {slot.state for slot in host.slots().values()} == {SlotState.BROKEN}, "the slot is out of use")
    reason = host.slots()["here-cpu0"].reason
    assert reason is not None
    assert reason.endswith("ImportError: the engine's library is not installed")
    assert host.stop() == 0


def test_a_worker_runs_where_folders_are_called_like_our_packages(host: Host, tmp_path: Path) -> None:
    """A user's own `jobs` or `worker` folder in the working directory must not be taken for ours."""
    for name in ("jobs", "worker"):
        (tmp_path / "project" / name).mkdir(parents=True)
        (tmp_path / "project" / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    command = python_module("worker.host.main", "--help")
    environ = {**os.environ, "PYTHONPATH": str(_ROOT)}
    shown = subprocess.run(command, cwd=tmp_path / "project", env=environ, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr


def _lease_on_a_deaf_runner(host: Host, folder: Path) -> str:
    job = host.job(folder, "deaf")
    lease_id = host.grant(job, "here-cpu0")
    host.wait_lease(lease_id, LeaseState.ACTIVE)
    wait_until(lambda: host.slots()["here-cpu0"].warm_models == ["deaf"], "the runner works")
    return lease_id


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
