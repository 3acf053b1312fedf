"""The keeper and its runner process, on a real database: how each lease ends, and that no process is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from jobs.config.activities import Activity
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import JobState, LeaseState
from jobs.ledger import jobs as job_ledger
from jobs.ledger import slots
from jobs.ledger.leasing import leases
from tests.conftest import wait_until
from tests.support.frozen import frozen
from tests.support.slot_keeper import SLOT, SlotKeeper
from worker.keeper import keeper

RENEWAL_SECONDS = 0.5
Opener = Callable[..., AbstractContextManager[SlotKeeper]]


@pytest.fixture
def open_keeper(
    settings: Settings, sqlite_database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Opener:
    """Opens a keeper with some settings changed; its runner gets them through the environment.

    Leases and graces are so long that only a test that shortens them sees one expire. Leases are renewed often all the
    same, because a stop comes with a renewal.
    """

    @contextmanager
    def opened(*, start_seconds: float = 60.0, **changes: Any) -> Iterator[SlotKeeper]:
        changed = settings.model_copy(
            update={
                "redis_url": redis_url,
                "lease_seconds": 600.0,
                "grace_seconds": 60.0,
                "retry_seconds": 0.05,
                **changes,
            }
        )
        for name, value in (
            ("DATA_DIR", changed.data_dir),
            ("DATABASE_URL", changed.database_url),
            ("INPUT_ROOTS", '["/"]'),
            ("STALL_SECONDS", changed.stall_seconds),
            ("STALL_LIMITS", orjson.dumps(dict(changed.stall_limits), option=orjson.OPT_NON_STR_KEYS).decode()),
        ):
            monkeypatch.setenv(f"STOKER_{name}", str(value))
        monkeypatch.setattr(keeper, "RENEWALS_PER_LEASE", changed.lease_seconds / RENEWAL_SECONDS)
        slot = SlotKeeper(changed, sqlite_database, start_seconds=start_seconds)
        try:
            yield slot
        finally:
            slot.close()
            wait_until(lambda: all(runner.is_gone for runner in slot.runners), "no runner is left behind")

    return opened


def test_a_lease_is_run_to_its_end_and_the_runner_stays_warm(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper() as slot:
        first = slot.job(tmp_path, "obey")
        lease = slot.run(first)
        assert (lease.state, lease.end_reason) == (LeaseState.RELEASED, "drained")
        assert first.job().state == JobState.FINALIZING
        second = slot.job(tmp_path, "obey")
        slot.run(second)
        assert {result.output for result in first.results() + second.results()} == {slot.runners[0].pid}
        wait_until(lambda: slot.runner_pool.warm_models == ("obey",), "the warm model is known")


def test_a_slot_goes_on_with_jobs_of_the_same_model(
    open_keeper: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "TAKES_NEXT_SECONDS", 3600.0)  # a slow machine takes seconds to start the runner
    with open_keeper() as slot:
        jobs = [slot.job(tmp_path, "obey") for _ in range(3)]
        other = slot.job(tmp_path, "die@0")
        slot.run(jobs[0])
        assert [job.job().state for job in jobs] == [JobState.FINALIZING] * 3
        assert {result.output for job in jobs for result in job.results()} == {slot.runners[0].pid}
        assert [(lease.state, lease.attempt) for job in jobs for lease in slot.leases_of(job)] == [("released", 1)] * 3
        assert (other.job().state, slot.leases_of(other)) == (JobState.QUEUED, [])


def test_a_slot_that_went_on_long_enough_is_returned(
    open_keeper: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "TAKES_NEXT_SECONDS", 0.0)
    with open_keeper() as slot:
        first, second = slot.job(tmp_path, "obey"), slot.job(tmp_path, "obey")
        slot.run(first)
        assert [first.job().state, second.job().state] == [JobState.FINALIZING, JobState.QUEUED]


def test_a_message_delivered_three_times_runs_once(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper() as slot:
        job = slot.job(tmp_path, "obey")
        lease_id = slot.grant(job)
        for _ in range(3):
            slot.keeper.run_lease(lease_id)
        slot.keeper.run_lease("lease_that_never_was")
        assert job.job().num_done == 4
        assert [lease.state for lease in slot.leases_of(job)] == [LeaseState.RELEASED]


def test_a_runner_that_dies_is_recorded_and_the_next_lease_finds_another(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper(chunk_crashes=2) as slot:
        job = slot.job(tmp_path, "die@3")
        lease = slot.run(job)
        assert lease.state == LeaseState.EXPIRED
        assert lease.end_reason == "the runner was ended by SIGSEGV, a fault in native code"
        blamed = job.chunks()[1]
        assert (blamed.state, blamed.crashes, blamed.attempt) == ("pending", 1, 2)
        job.set_chunk(2, not_before=0.0)
        for _ in range(8):  # cut in two, until the poison row is alone
            if job.job().state == JobState.FINALIZING:
                break
            slot.run(job)
            for chunk in job.chunks():
                job.set_chunk(chunk.start_row, not_before=0.0)
        assert job.job().state == JobState.FINALIZING
        assert [result.error.code if result.error else None for result in job.results()] == [None] * 3 + ["poison_row"]
        assert any("Fatal Python error: Segmentation fault" in line for line in slot.log(job))


def test_kill_9_of_a_runner_affects_only_its_job(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper() as slot:
        job = slot.job(tmp_path, "wait")
        with slot.running(job) as lease_id:
            wait_until(lambda: slot.log(job) or slot.runner_pool.warm_models, "the runner works")
            os.kill(slot.runners[0].pid, signal.SIGKILL)
        lease = slot.lease(lease_id)
        assert lease.state == LeaseState.EXPIRED
        assert lease.end_reason is not None
        assert "SIGKILL" in lease.end_reason
        assert job.job().crashes == 1
        assert slot.run(slot.job(tmp_path, "obey")).state == LeaseState.RELEASED


def test_an_idle_runner_that_dies_is_replaced_and_no_job_is_blamed(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper() as slot:
        assert slot.ready.acquire(timeout=300)
        os.kill(slot.runners[0].pid, signal.SIGKILL)
        job = slot.job(tmp_path, "obey")
        assert slot.run(job).state == LeaseState.RELEASED
        assert job.job().crashes == 0
        assert len(slot.runners) == 2


def test_what_a_dead_runner_started_is_killed_too(
    open_keeper: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grandchild that holds the pipes open must neither survive nor hide the runner's death."""
    monkeypatch.setenv("STANDIN_TRACE", str(tmp_path / "trace"))
    with open_keeper() as slot:
        assert slot.run(slot.job(tmp_path, "fork@0")).state == LeaseState.EXPIRED
        grandchild = int((tmp_path / "trace").read_text())
        wait_until(lambda: not _lives(grandchild), "the grandchild is gone")


def test_a_user_error_fails_the_job_and_keeps_the_runner(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper() as slot:
        job = slot.job(tmp_path, "bad-model")
        assert slot.run(job).state == LeaseState.RELEASED
        failed = job.job()
        assert (failed.state, failed.error_code, failed.error_message) == (
            JobState.FAILED, "invalid_model", "this is not a model",
        )  # fmt: skip
        slot.run(slot.job(tmp_path, "obey"))
        assert len(slot.runners) == 1


def test_an_unknown_error_blames_the_chunk_and_replaces_the_runner(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper() as slot:
        job = slot.job(tmp_path, "bug@2")
        lease = slot.run(job)
        assert lease.state == LeaseState.EXPIRED
        assert lease.end_reason == "RuntimeError: a bug that nobody thought of"
        assert job.chunks()[1].crashes == 1
        slot.run(slot.job(tmp_path, "obey"))
        assert len(slot.runners) == 2


def test_a_service_that_is_away_blames_no_chunk(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper() as slot:
        job = slot.job(tmp_path, "store-away")
        lease = slot.run(job)
        assert (lease.state, lease.end_reason) == (LeaseState.RELEASED, "the store cannot be reached")
        assert (job.job().crashes, job.job().state) == (0, JobState.RUNNING)
        assert len(slot.runners) == 1


def test_a_hanging_row_is_detected(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper(stall_limits={Activity.FORWARD: 5.0}) as slot:  # the rows before it must be recorded in less
        job = slot.job(tmp_path, "hang@2")
        lease = slot.run(job)
        assert lease.state == LeaseState.EXPIRED
        assert lease.end_reason is not None
        assert lease.end_reason.startswith("computing rows from 2 made no progress for ")
        assert job.chunks()[1].crashes == 1
        wait_until(lambda: slot.runners[0].is_gone, "the runner is killed")


def test_a_row_that_hangs_in_encode_is_isolated(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper(stall_limits={Activity.ENCODE: 3.0}, chunk_crashes=1) as slot:
        job = slot.job(tmp_path, "hang-encode@3")
        for _ in range(4):  # the chunk, cut in two, the row alone, and its row error
            if job.job().state != JobState.FINALIZING:
                slot.run(job)
        assert job.job().state == JobState.FINALIZING
        errors = [result.error for result in job.results()]
        assert errors[:3] == [None] * 3
        assert errors[3] is not None
        assert errors[3].code == "poison_row"
        assert "encoding rows from 3 made no progress for " in errors[3].message


def test_a_load_that_hangs_fails_the_job_after_the_usual_tries(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper(stall_limits={Activity.LOAD: 0.3}, job_crashes=2) as slot:
        job = slot.job(tmp_path, "load-for-ever")
        assert slot.run(job).state == LeaseState.EXPIRED
        assert job.job().crashes == 1
        slot.run(job)
        failed = job.job()
        assert (failed.state, failed.error_code) == (JobState.FAILED, "runner_stalled")
        assert failed.error_message is not None
        assert "loading the model made no progress for " in failed.error_message
        assert all(chunk.crashes == 0 for chunk in job.chunks()), "no row is to blame"


def test_a_heartbeat_has_the_runners_activity(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper(grace_seconds=0.5) as slot:  # the hanging runner ignores the cancel at the end
        job = slot.job(tmp_path, "hang@2")
        with slot.running(job) as lease_id:
            wait_until(lambda: slot.lease(lease_id).activity == "computing rows from 2", "it is told")
            lease = slot.lease(lease_id)
            assert lease.activity_at is not None
            assert lease.activated_at is not None
            assert lease.activity_at >= lease.activated_at - 1.0
            job_ledger.cancel(slot.database, job.job_id)


def test_a_cancel_reaches_the_runner(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper() as slot:
        job = slot.job(tmp_path, "wait")
        with slot.running(job) as lease_id:
            wait_until(lambda: slot.runner_pool.warm_models, "the runner works")
            job_ledger.cancel(slot.database, job.job_id)
        assert (slot.lease(lease_id).state, slot.lease(lease_id).end_reason) == (LeaseState.RELEASED, "stopped")
        assert job.job().state == JobState.CANCELLED
        assert not slot.runners[0].is_gone


def test_a_runner_that_ignores_a_cancel_is_killed_after_the_grace(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper(grace_seconds=0.5) as slot:
        job = slot.job(tmp_path, "deaf")
        with slot.running(job) as lease_id:
            wait_until(lambda: slot.runner_pool.warm_models, "the runner works")
            job_ledger.cancel(slot.database, job.job_id)
        assert slot.lease(lease_id).state == LeaseState.RELEASED
        assert slot.lease(lease_id).end_reason == "the runner did not stop within 0.5 s and was killed"
        wait_until(lambda: slot.runners[0].is_gone, "the runner is killed")
        assert job.job().state == JobState.CANCELLED
        assert all(chunk.state == "pending" for chunk in job.chunks())


def test_a_yield_gives_the_rest_back(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper() as slot:
        job = slot.job(tmp_path, "wait")
        with slot.running(job) as lease_id:
            wait_until(lambda: slot.runner_pool.warm_models, "the runner works")
            leases.ask_yield(slot.database, {lease_id: "job"})
        assert slot.lease(lease_id).state == LeaseState.RELEASED
        assert job.job().state == JobState.RUNNING


def test_a_lost_lease_ends_the_runner_at_once(open_keeper: Opener, tmp_path: Path) -> None:
    """Another worker owns the work, so the runner must not continue it."""
    with open_keeper() as slot:
        job = slot.job(tmp_path, "deaf")
        with slot.running(job) as lease_id:
            wait_until(lambda: slot.runner_pool.warm_models, "the runner works")
            slots.enter(slot.database, SLOT, "worker-2", slot.settings)
            wait_until(lambda: slot.runners[0].is_gone, "the runner is killed")
        assert slot.lease(lease_id).end_reason == "its worker was restarted"


def test_a_silent_database_ends_the_runner_once_the_lease_may_be_lost(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper(lease_seconds=10.0) as slot:
        job = slot.job(tmp_path, "deaf")
        assert slot.ready.acquire(timeout=300)  # so that little of the lease passes before the database is silent
        with slot.running(job):
            wait_until(lambda: slot.runner_pool.warm_models, "the runner works")
            with slot.database.write() as session:  # the whole file is locked: every heartbeat waits
                session.time()
                wait_until(lambda: slot.runners[0].is_gone, "the runner is killed")
            wait_until(lambda: len(slot.runners) == 2, "the slot is ready for other work")


def test_a_shutdown_gives_the_lease_back_and_takes_no_other(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper() as slot:
        job = slot.job(tmp_path, "wait")
        with slot.running(job) as lease_id:
            wait_until(lambda: slot.runner_pool.warm_models, "the runner works")
            slot.keeper.stop()
        assert (slot.lease(lease_id).state, slot.lease(lease_id).end_reason) == (LeaseState.RELEASED, "stopped")
        late = slot.run(job)
        assert (late.state, late.end_reason) == (LeaseState.RELEASED, "shutdown: before the work started")


def test_a_runner_that_cannot_start_reports_why_and_is_retried(
    open_keeper: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_START", "fail-once")
    monkeypatch.setenv("STANDIN_TRACE", str(tmp_path / "failed-once"))
    with open_keeper() as slot:
        assert slot.ready.acquire(timeout=300)
        assert slot.broken == ["the runner could not start: it exited with status 1: no memory yet"]
        assert slot.run(slot.job(tmp_path, "obey")).state == LeaseState.RELEASED


def test_a_runner_whose_start_hangs_is_killed(open_keeper: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_START", "hang")
    with open_keeper(start_seconds=0.5, retry_seconds=60.0) as slot:
        wait_until(lambda: slot.broken, "the slot is said to be broken")
        assert slot.broken == ["the runner could not start: it was killed by its keeper"]
        assert slot.runners[0].is_gone


def test_a_lease_on_a_slot_without_a_runner_goes_back(
    open_keeper: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_START", "fail")
    with open_keeper(retry_seconds=60.0) as slot:
        lease = slot.run(slot.job(tmp_path, "obey"))
        assert lease.state == LeaseState.RELEASED
        assert lease.end_reason is not None
        assert lease.end_reason.endswith("ImportError: the engine's library is not installed")


def test_what_a_runner_prints_is_the_jobs_log_up_to_the_limit(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper(log_lines=50) as slot:
        job = slot.job(tmp_path, "talk@60")
        slot.run(job)
        wait_until(lambda: len(slot.log(job)) > 50, "the log is written")
        lines = slot.log(job)
        assert lines[:50] == [f"line {index}" for index in range(50)]
        assert lines[50].startswith("[10 more lines were not kept")


def test_a_runner_frozen_beyond_its_limit_is_killed_and_loses_its_lease(open_keeper: Opener, tmp_path: Path) -> None:
    with open_keeper(stall_limits={Activity.FORWARD: 10.0}) as slot:  # it must be frozen before its row is overdue
        job = slot.job(tmp_path, "hang@0")
        assert slot.ready.acquire(timeout=300)
        runner = psutil.Process(slot.runners[0].pid)
        with slot.running(job) as lease_id:
            wait_until(lambda: job.chunks()[0].state == "leased", "the runner works, in no transaction")
            with frozen(runner.pid):  # SIGSTOP
                wait_until(lambda: slot.runners[0].is_gone, "a stopped runner is killed all the same")
            with pytest.raises(psutil.NoSuchProcess):
                runner.resume()  # SIGCONT: it must not come back to life
        lease = slot.lease(lease_id)
        assert lease.state == LeaseState.EXPIRED
        assert "made no progress" in (lease.end_reason or "")
        assert (job.job().num_done, job.chunks()[0].state) == (0, "pending")


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
