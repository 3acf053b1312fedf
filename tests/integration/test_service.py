"""The scheduler as a whole, on a real database and a real Redis: from submission to completion, through failures."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlmodel import col

import scheduler.control.service
import scheduler.control.service_pools
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import LIVE_JOB_STATES, JobState, LeaseState
from jobs.db.tables import Chunk, Cron, Job, LeaderLock, Lease, Slot
from jobs.errors import ServiceUnavailable
from jobs.ledger import chunks
from jobs.ledger import jobs as job_ledger
from jobs.ledger.groups import crons
from jobs.ledger.leasing import leases
from jobs.specs.array_spec import parse_submission
from jobs.specs.inference import parse_spec
from jobs.specs.schedule import parse_schedule
from scheduler.control.leader import Leader
from tests.conftest import RedisServer, wait_until
from tests.support.ledger import expire_leader_lock
from tests.support.live_scheduler import LiveScheduler, start_process, start_scheduler
from tests.support.rows import write_rows


@pytest.fixture
def system(settings: Settings, database: Database, redis_server: RedisServer) -> Iterator[LiveScheduler]:
    url = database.url.render_as_string(hide_password=False)
    changes = {"database_url": url, "redis_url": redis_server.url, "sweep_seconds": 0.2, "retry_seconds": 0.1}
    changes |= {"slot_seconds": 600.0, "lease_seconds": 600.0, "doorbell_seconds": 600.0}  # a busy machine is no death
    system = LiveScheduler(settings.model_copy(update=changes), database)
    yield system
    system.close()


def test_a_job_goes_all_the_way_from_submission_to_completion(system: LiveScheduler, tmp_path: Path) -> None:
    system.service().start()
    worker = system.worker()
    job_id = system.submit(tmp_path / "rows.jsonl", 100)
    lease_id = worker.answer()
    assert lease_id is not None, "the slot's doorbell was not rung"
    lease = worker.take_up(lease_id)
    assert lease is not None
    assert lease.job_id == job_id
    assert worker.work(lease) == 4
    leases.release(system.db, lease.lease_id, "drained")
    system.doorbell.wake()
    done = system.wait_for(job_id, JobState.COMPLETED)
    assert (done.num_rows, done.num_done, done.num_failed, done.num_tokens) == (100, 100, 0, 300)
    job_events = [name for name in system.events(job_id) if name.startswith("job.")]
    assert job_events == ["job.submitted", "job.queued", "job.finalizing", "job.completed"]


def test_many_jobs_on_two_slots_all_complete(system: LiveScheduler, tmp_path: Path) -> None:
    system.serve("s0", "s1")
    system.service().start()
    job_ids = [
        system.submit(tmp_path / f"rows{number}.jsonl", 40 * number + 1, priority=("low", "normal", "high")[number % 3])
        for number in range(12)
    ]
    for number, job_id in enumerate(job_ids):
        done = system.wait_for(job_id, JobState.COMPLETED)
        assert done.num_done == 40 * number + 1
    with system.db.read() as session:
        live = select(func.count()).where(col(Lease.state).in_((LeaseState.GRANTED, LeaseState.ACTIVE)))
        wait_until(lambda: session.scalar(live) == 0 or session.rollback(), "no lease is left over")


def test_a_file_output_is_merged_and_delivered(system: LiveScheduler, tmp_path: Path) -> None:
    system.serve("s0", "s1")
    system.service().start()
    out = tmp_path / "out.jsonl"
    job_id = system.submit(tmp_path / "rows.jsonl", 300, output={"to": "jsonl", "path": str(out)})
    system.wait_for(job_id, JobState.COMPLETED)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["row_index"] for line in lines] == list(range(300))
    with system.db.read() as session:
        (artifact,) = job_ledger.artifacts(session, job_id)
    with system.store.open(artifact.key) as merged:
        assert merged.read() == out.read_bytes()


def test_an_output_folder_that_vanished_fails_the_job_in_one_sentence(system: LiveScheduler, tmp_path: Path) -> None:
    system.service().start()
    worker = system.worker()
    folder = tmp_path / "outputs"
    folder.mkdir()
    job_id = system.submit(tmp_path / "rows.jsonl", 10, output={"to": "jsonl", "path": str(folder / "out.jsonl")})
    lease = worker.take_up(worker.answer() or "")
    assert lease is not None
    folder.rmdir()
    worker.work(lease)
    system.doorbell.wake()
    failed = system.wait_for(job_id, JobState.FAILED)
    assert failed.error_code == "invalid_output"
    assert "outputs" in (failed.error_message or "")


def test_a_store_that_is_away_delays_a_job_and_does_not_fail_it(
    system: LiveScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a full disk at the very end would lose all results."""
    real, is_away = scheduler.control.finalizer.deliver_output, threading.Event()

    def deliver(*arguments: Any) -> None:
        if is_away.is_set():
            raise ServiceUnavailable("writing out.jsonl failed: No space left on device")
        real(*arguments)

    monkeypatch.setattr(scheduler.control.finalizer, "deliver_output", deliver)
    is_away.set()
    system.serve("s0")
    system.service().start()
    job_id = system.submit(tmp_path / "rows.jsonl", output={"to": "jsonl", "path": str(tmp_path / "out.jsonl")})
    wait_until(lambda: "job.delayed" in system.events(job_id), "the delay is told")
    assert system.job(job_id).state == JobState.FINALIZING
    is_away.clear()
    system.wait_for(job_id, JobState.COMPLETED)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 100


def test_bad_input_fails_its_job_only(system: LiveScheduler, tmp_path: Path) -> None:
    system.serve("s0")
    system.service().start()
    bad = system.submit(tmp_path / "bad.jsonl", 0)
    good = system.submit(tmp_path / "good.jsonl", 10)
    assert system.wait_for(bad, JobState.FAILED).error_code == "invalid_input"
    system.wait_for(good, JobState.COMPLETED)


def test_a_high_job_gets_its_slot_at_the_next_chunk_boundary(system: LiveScheduler, tmp_path: Path) -> None:
    system.service().start()
    worker = system.worker()
    low = system.submit(tmp_path / "low.jsonl", 1000, priority="low")
    lease = worker.take_up(worker.answer() or "")
    assert lease is not None
    assert worker.work(lease, max_chunks=1) == 1
    high = system.submit(tmp_path / "high.jsonl", 10, priority="high")
    wait_until(
        lambda: leases.renew(system.db, lease.lease_id, lease_seconds=30.0).stop == "yield", "the low job is asked"
    )
    leases.release(system.db, lease.lease_id, "yielded")
    system.doorbell.wake()
    following = worker.take_up(worker.answer() or "")
    assert following is not None
    assert following.job_id == high
    worker.work(following)
    leases.release(system.db, following.lease_id, "drained")
    system.doorbell.wake()
    system.wait_for(high, JobState.COMPLETED)
    resumed = worker.take_up(worker.answer() or "")
    assert resumed is not None
    assert resumed.job_id == low


def test_a_slot_that_dies_gives_its_work_to_another(system: LiveScheduler, tmp_path: Path) -> None:
    system.service().start()
    dying = system.worker("s0")
    job_id = system.submit(tmp_path / "rows.jsonl", 10)
    lease = dying.take_up(dying.answer() or "")
    assert lease is not None
    assert len(chunks.claim(system.db, lease.lease_id, limit=1)) == 1
    with system.db.write() as session:  # long after its last words
        session.get_one(Slot, "s0").heartbeat_at = session.get_one(Lease, lease.lease_id).expires_at = 0.0
    system.serve("s1")
    system.wait_for(job_id, JobState.COMPLETED)
    assert "lease.expired" in system.events(job_id)


def test_messages_that_redis_lost_are_sent_again(
    system: LiveScheduler, tmp_path: Path, redis_server: RedisServer
) -> None:
    system.settings = system.settings.model_copy(update={"doorbell_seconds": 0.5, "doorbell_rings": 100})
    system.service().start()
    worker = system.worker()
    job_id = system.submit(tmp_path / "rows.jsonl", 10)
    wait_until(lambda: "lease.granted" in system.events(job_id), "the lease is granted")
    redis_server.kill()
    redis_server.appendonly = False  # comes back empty
    redis_server.start()
    lease = worker.take_up(worker.answer() or "")
    assert lease is not None
    worker.work(lease)
    system.wait_for(job_id, JobState.COMPLETED)


def test_a_job_completes_that_was_submitted_while_redis_was_away(
    system: LiveScheduler, tmp_path: Path, redis_server: RedisServer
) -> None:
    system.settings = system.settings.model_copy(update={"doorbell_seconds": 0.5, "doorbell_rings": 100})
    system.service().start()
    worker = system.worker()
    redis_server.kill()
    job_id = system.submit(tmp_path / "rows.jsonl", 10)
    wait_until(lambda: "lease.granted" in system.events(job_id), "the service finds the job without a doorbell")
    redis_server.start()
    lease = worker.take_up(worker.answer() or "")
    assert lease is not None
    worker.work(lease)
    system.wait_for(job_id, JobState.COMPLETED)


def test_a_duty_that_always_fails_stops_no_other(
    system: LiveScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(scheduler.control.service, "reap", broken)
    system.serve("s0")
    with caplog.at_level(logging.ERROR):
        system.service().start()
        system.wait_for(system.submit(tmp_path / "rows.jsonl", 10), JobState.COMPLETED)
    assert "reaping failed" in caplog.text
    assert "a fault of ours" in caplog.text


def test_retention_that_failed_is_tried_again_before_its_next_turn(
    system: LiveScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []

    def retain(*_: object, **__: object) -> None:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise ServiceUnavailable("the store is away")

    monkeypatch.setattr(scheduler.control.service_pools, "retain", retain)
    monkeypatch.setattr(scheduler.control.service, "_FIRST_RETENTION_SECONDS", 0.0)
    system.service().start()
    wait_until(lambda: len(tries) == 3, "it is tried until it succeeds")


def test_a_scheduler_that_stops_starts_nothing_that_is_enqueued(
    system: LiveScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[str] = []
    plans_may_end, retention_may_end, cleans = threading.Event(), threading.Event(), threading.Event()

    def plan(*arguments: Any, **_: object) -> None:
        planned.append(arguments[3])
        plans_may_end.wait(600.0)

    def retain(*_: object, **__: object) -> None:
        cleans.set()
        retention_may_end.wait(600.0)

    def is_alive(name: str) -> bool:
        return any(thread.name.startswith(name) for thread in threading.enumerate())

    monkeypatch.setattr(scheduler.control.service_pools, "plan_any", plan)
    monkeypatch.setattr(scheduler.control.service_pools, "retain", retain)
    monkeypatch.setattr(scheduler.control.service, "_FIRST_RETENTION_SECONDS", 0.0)
    system.settings = system.settings.model_copy(update={"grace_seconds": 600.0})
    service = system.service()
    stopping = threading.Thread(target=service.stop)
    for _ in range(5):
        system.submit(tmp_path / "rows.jsonl", 10)
    service.start()
    try:
        wait_until(lambda: len(planned) == 3 and cleans.is_set(), "three jobs are planned, and two are enqueued")
        stopping.start()
        wait_until(lambda: not is_alive("duties"), "its lanes have stopped")
        plans_may_end.set()
        wait_until(lambda: not is_alive("planning") or len(planned) > 3, "the planners have ended")
        assert len(planned) == 3
    finally:
        plans_may_end.set()
        retention_may_end.set()
        if stopping.ident is not None:
            stopping.join()


def test_the_reaper_and_the_planner_never_wait_for_a_pass(
    system: LiveScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do webhooks and batches, which share the planner's thread."""
    worker = system.worker()
    system.service().start()
    running = system.submit(tmp_path / "first.jsonl", 10)
    lease = worker.take_up(worker.answer() or "")
    assert lease is not None
    real, decides, may_end = scheduler.control.service.dispatch, threading.Event(), threading.Event()

    def dispatch(*arguments: Any) -> int:
        decides.set()
        assert may_end.wait(600.0)
        return real(*arguments)

    monkeypatch.setattr(scheduler.control.service, "dispatch", dispatch)
    try:
        system.doorbell.wake()
        assert decides.wait(300.0)
        with system.db.write() as session:
            session.get_one(Lease, lease.lease_id).expires_at = 0.0
        second = system.submit(tmp_path / "second.jsonl", 10)
        system.wait_for(second, JobState.QUEUED)
        system.wait_for(running, JobState.QUEUED)
        assert "lease.expired" in system.events(running)
    finally:
        may_end.set()
    assert worker.take_up(worker.answer() or "") is not None, "the pass goes on where it was"


def test_a_fault_while_taking_the_lead_does_not_end_the_scheduler(
    system: LiveScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    system.settings = system.settings.model_copy(update={"leader_seconds": 1.0})
    real, faults = Leader.acquire, iter([RuntimeError("a fault of ours")])

    def acquire(leader: Leader) -> float:
        for fault in faults:
            raise fault
        return real(leader)

    monkeypatch.setattr(Leader, "acquire", acquire)
    system.serve("s0")
    with caplog.at_level(logging.ERROR):
        system.service().start()
        system.wait_for(system.submit(tmp_path / "rows.jsonl", 10), JobState.COMPLETED)
    assert "a fault of ours" in caplog.text


def test_of_two_schedulers_one_leads_and_the_other_follows_it(system: LiveScheduler, tmp_path: Path) -> None:
    first, second = system.service(), system.service()
    first.start()
    wait_until(lambda: first.leads, "the first leads")
    second.start()
    system.serve("s0")
    system.wait_for(system.submit(tmp_path / "a.jsonl", 10), JobState.COMPLETED)
    assert not second.leads
    first.stop()
    wait_until(lambda: second.leads, "the second follows")
    system.wait_for(system.submit(tmp_path / "b.jsonl", 10), JobState.COMPLETED)


def test_after_a_scheduler_killed_while_planning_the_next_plans_anew(system: LiveScheduler, tmp_path: Path) -> None:
    child = start_process(system.settings.model_copy(update={"leader_seconds": 600.0}))
    system.settings = system.settings.model_copy(update={"leader_seconds": 20.0})  # a standby looks every 5 s
    try:
        with system.db.read() as session:
            leaders = select(func.count()).select_from(LeaderLock)
            wait_until(lambda: session.scalar(leaders) == 1 or session.rollback(), "the first scheduler leads")
        follower = system.service()
        follower.start()
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b'{"text":"a row"}\n' * 60_000)
        job_id = system.submit(path, batching={"chunk_rows": 1})
        with system.db.read() as session:
            some = select(func.count()).select_from(Chunk)
            wait_until(lambda: session.scalar(some) or session.rollback(), "planning is under way")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert system.job(job_id).state == JobState.VALIDATING
    assert not follower.leads, "the lock of the first has not expired"
    expire_leader_lock(system.db)
    wait_until(lambda: follower.leads, "the other scheduler leads")
    planned = system.wait_for(job_id, JobState.QUEUED)
    with system.db.read() as session:
        total = session.scalar(select(func.sum(Chunk.stop_row - Chunk.start_row)).where(col(Chunk.job_id) == job_id))
    assert total == planned.num_rows == 60_000


def test_jobs_run_one_after_another_as_their_specs_say(system: LiveScheduler, tmp_path: Path) -> None:
    system.serve("s0", "s1")
    system.service().start()
    first = system.submit(tmp_path / "rows.jsonl", 300)
    second = system.submit(tmp_path / "rows.jsonl", after=[f"job:{first}"])
    third = system.submit(tmp_path / "rows.jsonl", after=[{"job": f"job:{second}", "when": "any"}])
    later = system.submit(tmp_path / "rows.jsonl", start_at="2090-01-01T00:00:00Z")
    chain = [system.wait_for(job_id, JobState.COMPLETED) for job_id in (first, second, third)]
    for before, after in pairwise(chain):
        assert before.ended_at is not None
        assert after.ready_at is not None
        assert after.started_at is not None
        assert before.ended_at <= after.ready_at <= after.started_at
    assert system.job(later).state == JobState.VALIDATING


def test_two_schedulers_make_one_job_for_each_time_of_a_cron_entry(system: LiveScheduler, tmp_path: Path) -> None:
    system.serve("s0")
    rows = write_rows(tmp_path / "rows.jsonl", 3)
    spec = parse_spec({"task": "text-classification", "model": "org/name", "input": {"path": str(rows)}})
    entries = [
        crons.add(system.db, f"e{number}", parse_schedule("* * * * *", "UTC"), spec, project="p") for number in range(5)
    ]
    with system.db.write() as session:
        for entry in entries:
            session.get_one(Cron, entry.id).next_at = 60.0
    for _ in range(2):
        system.service().start()

    def fired() -> list[Cron]:
        with system.db.read() as session:
            return [session.get_one(Cron, entry.id) for entry in entries]

    wait_until(lambda: all(entry.last_job_id for entry in fired()), "all entries have fired")
    for entry in fired():
        assert entry.last_job_id is not None
        system.wait_for(entry.last_job_id, JobState.COMPLETED)
        with system.db.read() as session:
            keys = list(session.scalars(select(col(Job.idempotency_key)).where(col(Job.project) == "p")))
        times = {key.rpartition("/")[2] for key in keys if key is not None and entry.id in key}
        assert len(times) == sum(entry.id in (key or "") for key in keys), "no time has made two jobs"


def test_two_schedulers_run_an_array_through_the_death_of_the_leader(system: LiveScheduler, tmp_path: Path) -> None:
    system.settings = system.settings.model_copy(update={"leader_seconds": 2.0})
    for number in range(40):
        write_rows(tmp_path / f"part{number}.jsonl", 5)
    template = {
        "task": "text-classification",
        "model": "org/name",
        "input": {"path": f"{tmp_path}/part${{value}}.jsonl"},
    }
    spec = parse_submission({**template, "array": {"values": list(range(40)), "max_parallel": 3}})
    array_id = job_ledger.submit(system.db, spec).id
    leader = start_scheduler(system.settings)
    try:
        system.serve("s0", "s1")

        def children(*states: JobState) -> list[Job]:
            of_array = select(Job).where(col(Job.parent_id) == array_id).order_by(col(Job.child_index))
            with system.db.read() as session:
                return [child for child in session.scalars(of_array) if not states or child.state in states]

        wait_until(lambda: len(children(JobState.COMPLETED)) >= 5, "some children are done")
        assert len([one for one in children(*LIVE_JOB_STATES) if one.ready_at is not None]) <= 3
        follower = system.service()
        follower.start()
        leader.send_signal(signal.SIGKILL)
        leader.wait()
        wait_until(lambda: follower.leads, "the follower leads")
        array = system.wait_for(array_id, JobState.COMPLETED)
    finally:
        leader.kill()
        leader.wait()
    assert (array.num_rows, array.num_done, array.num_failed) == (40, 40, 0)
    assert [(child.child_index, child.state, child.num_done) for child in children()] == [
        (number, JobState.COMPLETED, 5) for number in range(40)
    ]
