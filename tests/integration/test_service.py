"""The scheduler as a whole, on a real database and a real Redis: from submission to completion, through failures."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlmodel import col

import scheduler.control.service
from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import JobState, LeaseState
from jobs.db.tables import Chunk, LeaderLock, Lease, Slot
from jobs.errors import ServiceUnavailable
from jobs.ledger import chunks, leases
from jobs.ledger import jobs as job_ledger
from scheduler.control.leader import Leader
from tests.conftest import RedisServer, wait_until
from tests.support.live_scheduler import LiveScheduler, start_process


@pytest.fixture
def house(settings: Settings, database: Database, redis_server: RedisServer) -> Iterator[LiveScheduler]:
    url = database.url.render_as_string(hide_password=False)
    changes = {"database_url": url, "redis_url": redis_server.url, "sweep_seconds": 0.2, "retry_seconds": 0.1}
    changes |= {"slot_seconds": 600.0, "lease_seconds": 600.0, "doorbell_seconds": 600.0}  # a busy machine is no death
    house = LiveScheduler(settings.model_copy(update=changes), database)
    yield house
    house.close()


def test_a_job_goes_all_the_way_from_submission_to_completion(house: LiveScheduler, tmp_path: Path) -> None:
    house.service().start()
    hand = house.hand()
    job_id = house.submit(tmp_path / "rows.jsonl", 100)
    lease_id = hand.answer()
    assert lease_id is not None, "the slot's doorbell was not rung"
    lease = hand.take_up(lease_id)
    assert lease is not None
    assert lease.job_id == job_id
    assert hand.work(lease) == 4
    leases.release(house.db, lease.lease_id, "drained")
    house.doorbell.wake()
    done = house.wait_for(job_id, JobState.COMPLETED)
    assert (done.num_rows, done.num_done, done.num_failed, done.num_tokens) == (100, 100, 0, 300)
    told = [name for name in house.events(job_id) if name.startswith("job.")]
    assert told == ["job.submitted", "job.queued", "job.finalizing", "job.completed"]


def test_many_jobs_on_two_slots_all_complete(house: LiveScheduler, tmp_path: Path) -> None:
    house.serve("s0", "s1")
    house.service().start()
    job_ids = [
        house.submit(tmp_path / f"rows{number}.jsonl", 40 * number + 1, priority=("low", "normal", "high")[number % 3])
        for number in range(12)
    ]
    for number, job_id in enumerate(job_ids):
        done = house.wait_for(job_id, JobState.COMPLETED)
        assert done.num_done == 40 * number + 1
    with house.db.read() as session:
        live = select(func.count()).where(col(Lease.state).in_((LeaseState.GRANTED, LeaseState.ACTIVE)))
        wait_until(lambda: session.scalar(live) == 0 or session.rollback(), "no lease is left over")


def test_a_file_output_is_merged_and_delivered(house: LiveScheduler, tmp_path: Path) -> None:
    house.serve("s0", "s1")
    house.service().start()
    out = tmp_path / "out.jsonl"
    job_id = house.submit(tmp_path / "rows.jsonl", 300, output={"to": "jsonl", "path": str(out)})
    house.wait_for(job_id, JobState.COMPLETED)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["row_index"] for line in lines] == list(range(300))
    with house.db.read() as session:
        (artifact,) = job_ledger.artifacts(session, job_id)
    with house.store.open(artifact.key) as merged:
        assert merged.read() == out.read_bytes()


def test_an_output_folder_that_vanished_fails_the_job_in_one_sentence(house: LiveScheduler, tmp_path: Path) -> None:
    house.service().start()
    hand = house.hand()
    folder = tmp_path / "outputs"
    folder.mkdir()
    job_id = house.submit(tmp_path / "rows.jsonl", 10, output={"to": "jsonl", "path": str(folder / "out.jsonl")})
    lease = hand.take_up(hand.answer() or "")
    assert lease is not None
    folder.rmdir()
    hand.work(lease)
    house.doorbell.wake()
    failed = house.wait_for(job_id, JobState.FAILED)
    assert failed.error_code == "invalid_output"
    assert "outputs" in (failed.error_message or "")


def test_a_store_that_is_away_delays_a_job_and_does_not_fail_it(
    house: LiveScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a full disk at the very end would cost all that was computed."""
    real, is_away = scheduler.control.finalizer.deliver_output, threading.Event()

    def deliver(*arguments: Any) -> None:
        if is_away.is_set():
            raise ServiceUnavailable("writing out.jsonl failed: No space left on device")
        real(*arguments)

    monkeypatch.setattr(scheduler.control.finalizer, "deliver_output", deliver)
    is_away.set()
    house.serve("s0")
    house.service().start()
    job_id = house.submit(tmp_path / "rows.jsonl", output={"to": "jsonl", "path": str(tmp_path / "out.jsonl")})
    wait_until(lambda: "job.delayed" in house.events(job_id), "the delay is told")
    assert house.job(job_id).state == JobState.FINALIZING
    is_away.clear()
    house.wait_for(job_id, JobState.COMPLETED)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 100


def test_bad_input_fails_its_job_only(house: LiveScheduler, tmp_path: Path) -> None:
    house.serve("s0")
    house.service().start()
    bad = house.submit(tmp_path / "bad.jsonl", 0)
    good = house.submit(tmp_path / "good.jsonl", 10)
    assert house.wait_for(bad, JobState.FAILED).error_code == "invalid_input"
    house.wait_for(good, JobState.COMPLETED)


def test_a_high_job_gets_its_slot_at_the_next_chunk_boundary(house: LiveScheduler, tmp_path: Path) -> None:
    house.service().start()
    hand = house.hand()
    low = house.submit(tmp_path / "low.jsonl", 1000, priority="low")
    lease = hand.take_up(hand.answer() or "")
    assert lease is not None
    assert hand.work(lease, max_chunks=1) == 1
    high = house.submit(tmp_path / "high.jsonl", 10, priority="high")
    wait_until(
        lambda: leases.renew(house.db, lease.lease_id, lease_seconds=30.0).stop == "yield", "the low job is asked"
    )
    leases.release(house.db, lease.lease_id, "yielded")
    house.doorbell.wake()
    following = hand.take_up(hand.answer() or "")
    assert following is not None
    assert following.job_id == high
    hand.work(following)
    leases.release(house.db, following.lease_id, "drained")
    house.doorbell.wake()
    house.wait_for(high, JobState.COMPLETED)
    resumed = hand.take_up(hand.answer() or "")
    assert resumed is not None
    assert resumed.job_id == low


def test_a_slot_that_dies_gives_its_work_to_another(house: LiveScheduler, tmp_path: Path) -> None:
    house.service().start()
    dying = house.hand("s0")
    job_id = house.submit(tmp_path / "rows.jsonl", 10)
    lease = dying.take_up(dying.answer() or "")
    assert lease is not None
    assert len(chunks.claim(house.db, lease.lease_id, limit=1)) == 1
    with house.db.write() as session:  # long after its last words
        session.get_one(Slot, "s0").heartbeat_at = session.get_one(Lease, lease.lease_id).expires_at = 0.0
    house.serve("s1")
    house.wait_for(job_id, JobState.COMPLETED)
    assert "lease.expired" in house.events(job_id)


def test_messages_that_redis_lost_are_sent_again(
    house: LiveScheduler, tmp_path: Path, redis_server: RedisServer
) -> None:
    house.settings = house.settings.model_copy(update={"doorbell_seconds": 0.5, "doorbell_rings": 100})
    house.service().start()
    hand = house.hand()
    job_id = house.submit(tmp_path / "rows.jsonl", 10)
    wait_until(lambda: "lease.granted" in house.events(job_id), "the lease is granted")
    redis_server.kill()
    redis_server.appendonly = False  # comes back empty
    redis_server.start()
    lease = hand.take_up(hand.answer() or "")
    assert lease is not None
    hand.work(lease)
    house.wait_for(job_id, JobState.COMPLETED)


def test_a_job_completes_that_was_submitted_while_redis_was_away(
    house: LiveScheduler, tmp_path: Path, redis_server: RedisServer
) -> None:
    house.settings = house.settings.model_copy(update={"doorbell_seconds": 0.5, "doorbell_rings": 100})
    house.service().start()
    hand = house.hand()
    redis_server.kill()
    job_id = house.submit(tmp_path / "rows.jsonl", 10)
    wait_until(lambda: "lease.granted" in house.events(job_id), "the sweep finds the job without a doorbell")
    redis_server.start()
    lease = hand.take_up(hand.answer() or "")
    assert lease is not None
    hand.work(lease)
    house.wait_for(job_id, JobState.COMPLETED)


def test_a_duty_that_always_fails_stops_no_other(
    house: LiveScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(scheduler.control.service, "reap", broken)
    house.serve("s0")
    with caplog.at_level(logging.ERROR):
        house.service().start()
        house.wait_for(house.submit(tmp_path / "rows.jsonl", 10), JobState.COMPLETED)
    assert "reaping failed" in caplog.text
    assert "a fault of ours" in caplog.text


def test_a_fault_while_taking_the_lead_does_not_end_the_scheduler(
    house: LiveScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house.settings = house.settings.model_copy(update={"leader_seconds": 1.0})
    real, faults = Leader.acquire, iter([RuntimeError("a fault of ours")])

    def acquire(leader: Leader) -> float:
        for fault in faults:
            raise fault
        return real(leader)

    monkeypatch.setattr(Leader, "acquire", acquire)
    house.serve("s0")
    with caplog.at_level(logging.ERROR):
        house.service().start()
        house.wait_for(house.submit(tmp_path / "rows.jsonl", 10), JobState.COMPLETED)
    assert "a fault of ours" in caplog.text


def test_of_two_schedulers_one_leads_and_the_other_follows_it(house: LiveScheduler, tmp_path: Path) -> None:
    first, second = house.service(), house.service()
    first.start()
    wait_until(lambda: first.leads, "the first leads")
    second.start()
    house.serve("s0")
    house.wait_for(house.submit(tmp_path / "a.jsonl", 10), JobState.COMPLETED)
    assert not second.leads
    first.stop()
    wait_until(lambda: second.leads, "the second follows")
    house.wait_for(house.submit(tmp_path / "b.jsonl", 10), JobState.COMPLETED)


def test_after_a_scheduler_killed_while_planning_the_next_plans_anew(house: LiveScheduler, tmp_path: Path) -> None:
    house.settings = house.settings.model_copy(update={"leader_seconds": 2.0})
    child = start_process(house.settings)
    try:
        with house.db.read() as session:
            leaders = select(func.count()).select_from(LeaderLock)
            wait_until(lambda: session.scalar(leaders) == 1 or session.rollback(), "the first scheduler leads")
        follower = house.service()
        follower.start()
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b'{"text":"a row"}\n' * 60_000)
        job_id = house.submit(path, batching={"chunk_rows": 1})
        with house.db.read() as session:
            some = select(func.count()).select_from(Chunk)
            wait_until(lambda: session.scalar(some) or session.rollback(), "planning is under way")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert house.job(job_id).state == JobState.VALIDATING
    wait_until(lambda: follower.leads, "the other scheduler leads")
    planned = house.wait_for(job_id, JobState.QUEUED)
    with house.db.read() as session:
        total = session.scalar(select(func.sum(Chunk.stop_row - Chunk.start_row)).where(col(Chunk.job_id) == job_id))
    assert total == planned.num_rows == 60_000
