"""The scheduler's duties for gangs, on both databases and a real Redis: granted, rung and preempted whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import AttemptEnd, JobState
from jobs.db.tables import Event, Job, Lease
from jobs.ledger import attempts, planning, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.leasing import leases
from jobs.ledger.leasing.reservations import RESERVED
from jobs.queue import make_app, queue_name
from jobs.specs.inference import parse_spec
from scheduler.control.dispatch.dispatcher import explain, read_policy_input
from scheduler.policy.preemption import MOST_PREEMPTIONS
from scheduler.policy.types import BRIEF_SECONDS
from tests.conftest import RedisServer
from tests.support.ledger import job_state
from tests.support.manual_scheduler import ManualScheduler


class GangScheduler(ManualScheduler):
    """Two hosts, `a` with three slots and `b` with two."""

    def register_slots(self) -> None:
        names = ["a0", "a1", "a2", "b0", "b1"]
        slots.register(self.db, [slots.SlotInfo(name, name[0], "cuda", f"GPU-{name}", "card", 0, 1) for name in names])
        for name in names:
            slots.enter(self.db, name, name, self.settings)

    def training(self, num_slots: int, **fields: Any) -> str:
        document = {
            "kind": "training", "task": "text-classification", "model": "m", "data": {"train": "x.jsonl"},
            "slots": num_slots, **fields,
        }  # fmt: skip
        job = job_ledger.submit(self.db, parse_spec(document))
        planning.enqueue(self.db, job.id)
        return job.id

    def begin(self, job_id: str) -> str:
        """Have every slot of a granted gang take its lease up, and the training begin; gives the leader's lease."""
        slot_ids = [slot_id for slot_id, holder in self.live().items() if holder == job_id]
        lease_ids = {self.lease_on(slot_id).rank: self.activate(slot_id) for slot_id in slot_ids}
        attempts.begin(self.db, lease_ids[0], resumed_step=0)
        return lease_ids[0]


@pytest.fixture
def scheduler(database_url: str, settings: Settings, redis_url: str, tmp_path: Path) -> Iterator[GangScheduler]:
    """A scheduler with five slots on two hosts."""
    changed = settings.model_copy(update={"database_url": database_url, "redis_url": redis_url})
    found: list[GangScheduler] = []
    db = Database(database_url, clock=lambda: found[0].clock() if found else 0.0)
    found.append(GangScheduler(db, changed, Store(str(tmp_path / "store")), make_app(changed)))
    found[0].register_slots()
    yield found[0]
    db.close()


def test_a_gang_is_granted_on_one_host_and_every_member_is_rung(
    scheduler: GangScheduler, redis_server: RedisServer
) -> None:
    job_id = scheduler.training(3)
    assert scheduler.dispatch() == 3
    assert scheduler.live() == {"a0": job_id, "a1": job_id, "a2": job_id}
    with redis.Redis(unix_socket_path=str(redis_server.socket)) as client:
        keys = [key.decode() for key in client.keys(f"*{queue_name('')}*") if client.type(key) == b"list"]
    assert sorted(key[-2:] for key in keys) == ["a0", "a1", "a2"]
    assert scheduler.dispatch() == 0


def test_a_gang_that_no_host_can_hold_waits_with_a_reason(scheduler: GangScheduler) -> None:
    job_id = scheduler.training(4)
    assert scheduler.dispatch() == 0
    assert job_state(scheduler.db, job_id) == JobState.QUEUED
    with scheduler.db.read() as session:
        reasons = explain(session, scheduler.settings)
    assert reasons == {job_id: "needs 4 slots of one host at once; the largest host has 3 online"}


def test_a_gang_that_lost_a_slot_starts_again_elsewhere(scheduler: GangScheduler) -> None:
    job_id = scheduler.training(2)
    scheduler.dispatch()
    assert scheduler.live() == {"b0": job_id, "b1": job_id}
    scheduler.begin(job_id)
    slots.enter(scheduler.db, "b1", "b1-again", scheduler.settings)
    scheduler.reap()
    slots.retire(scheduler.db, ["b1"])
    assert scheduler.dispatch() == 2
    assert set(scheduler.live()) == {"a0", "a1"}
    scheduler.begin(job_id)
    with scheduler.db.read() as session:
        tries = attempts.attempts(session, job_id)
    assert [(attempt.number, attempt.end) for attempt in tries] == [(1, AttemptEnd.LOST), (2, None)]


@pytest.mark.parametrize(("seconds", "is_kept"), [(BRIEF_SECONDS / 2, True), (2 * BRIEF_SECONDS, False)])
def test_a_gang_that_backs_off_briefly_keeps_its_slots(scheduler: GangScheduler, seconds: float, is_kept: bool) -> None:
    high = scheduler.training(3, priority="high")
    with scheduler.db.write() as session:
        session.get_one(Job, high).not_before = scheduler.time + seconds
    slots.retire(scheduler.db, ["b0", "b1"])
    low = scheduler.training(1, priority="low")
    assert scheduler.dispatch() == (0 if is_kept else 1)
    scheduler.time += seconds
    assert scheduler.dispatch() == (3 if is_kept else 0)
    assert set(scheduler.live().values()) == {high if is_kept else low}


def test_a_high_training_preempts_a_lower_one_a_few_times_and_each_goes_on(scheduler: GangScheduler) -> None:
    slots.retire(scheduler.db, ["b0", "b1"])
    low = scheduler.training(3, priority="low")
    scheduler.dispatch()
    for number in range(MOST_PREEMPTIONS + 1):
        low_lease = scheduler.begin(low)
        high = scheduler.training(2, priority="high")
        assert scheduler.dispatch() == 0
        assert leases.renew(scheduler.db, low_lease, lease_seconds=1e9).stop is None, "it has its minimum of time"
        scheduler.time += Settings().preemptable_seconds
        scheduler.beat("a0", "a1", "a2")
        for _ in range(2):  # asking again changes nothing
            assert scheduler.dispatch() == 0
        stop = leases.renew(scheduler.db, low_lease, lease_seconds=1e9).stop
        if number == MOST_PREEMPTIONS:
            assert stop is None, "it was preempted often enough"
            return
        assert stop == "yield"
        leases.release(scheduler.db, low_lease, "stopped")
        scheduler.reap()
        assert job_state(scheduler.db, low) == JobState.QUEUED
        assert scheduler.dispatch() == 2
        assert set(scheduler.live().values()) == {high}
        leases.release(scheduler.db, scheduler.begin(high), "drained")
        job_ledger.cancel(scheduler.db, high)
        scheduler.reap()
        assert scheduler.dispatch() == 3
    pytest.fail("it was preempted without end")


def test_a_waiting_gang_is_promised_its_slots_by_a_time(scheduler: GangScheduler) -> None:
    running = [scheduler.training(3, time_limit="1h"), scheduler.training(2)]
    assert scheduler.dispatch() == 5
    lease_ids = [scheduler.begin(job_id) for job_id in running]
    gang = scheduler.training(2)
    scheduler.dispatch()
    with scheduler.db.read() as session:
        assert _promises(scheduler, gang) == [session.get_one(Job, running[0]).deadline_at], "by its time limit"
    scheduler.time += 100
    attempts.advance(scheduler.db, lease_ids[1], step=100, total_steps=200, points=[])
    scheduler.beat("a0", "a1", "a2", "b0", "b1")
    scheduler.dispatch()
    sooner = scheduler.time + 110
    assert _promises(scheduler, gang)[1:] == [pytest.approx(sooner, abs=1)], "100 steps at a second each, and a tenth"
    scheduler.dispatch()
    assert len(_promises(scheduler, gang)) == 2, "it is repeated only when it has moved"
    with scheduler.db.read() as session:
        assert "reserved for it and free by" in explain(session, scheduler.settings)[gang]


def _promises(scheduler: GangScheduler, job_id: str) -> list[float]:
    with scheduler.db.read() as session:
        events = session.scalars(select(Event).where(col(Event.job_id) == job_id, col(Event.name) == RESERVED))
        return [event.data["until"] for event in sorted(events, key=lambda event: event.id or 0)]


def test_a_slot_that_is_returned_goes_to_the_job_for_which_it_was_asked(scheduler: GangScheduler) -> None:
    bulk = scheduler.job(10, priority="low")
    assert scheduler.dispatch() == 5
    lease_ids = {slot_id: scheduler.activate(slot_id) for slot_id in scheduler.live()}
    gang = scheduler.training(2)
    scheduler.dispatch()
    with scheduler.db.read() as session:
        asked = session.scalars(select(Lease).where(col(Lease.yield_asked))).all()
    assert {lease.yield_for for lease in asked} == {gang}
    for lease in asked:
        leases.release(scheduler.db, lease_ids[lease.slot_id], "yielded")
    with scheduler.db.read() as session:
        facts = read_policy_input(session, scheduler.settings)
    assert {slot.id for slot in facts.slots if slot.kept_for == gang} == {lease.slot_id for lease in asked}
    assert bulk in scheduler.live().values()
    scheduler.dispatch()
    assert sorted(slot_id for slot_id, job_id in scheduler.live().items() if job_id == gang) == sorted(
        lease.slot_id for lease in asked
    )
