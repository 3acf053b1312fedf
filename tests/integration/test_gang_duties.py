"""The scheduler's duties for gangs, on both databases and a real Redis: granted, rung and preempted whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import AttemptEnd, JobState
from jobs.db.tables import Job
from jobs.ledger import attempts, leases, planning, slots
from jobs.ledger import jobs as job_ledger
from jobs.queue import make_app, queue_name
from jobs.specs.inference import parse_spec
from scheduler.control.dispatcher import explain
from scheduler.policy.preemption import MOST_PREEMPTIONS
from scheduler.policy.types import BRIEF_SECONDS
from tests.conftest import RedisServer
from tests.support.hand import job_state
from tests.support.manual_scheduler import ManualScheduler


class GangScheduler(ManualScheduler):
    """Two hosts, `a` with three slots and `b` with two."""

    def furnish(self) -> None:
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
def gang_house(database_url: str, settings: Settings, redis_url: str, tmp_path: Path) -> Iterator[GangScheduler]:
    """A furnished house of its own."""
    changed = settings.model_copy(update={"database_url": database_url, "redis_url": redis_url})
    found: list[GangScheduler] = []
    db = Database(database_url, clock=lambda: found[0].clock() if found else 0.0)
    found.append(GangScheduler(db, changed, Store(str(tmp_path / "store")), make_app(changed)))
    found[0].furnish()
    yield found[0]
    db.close()


def test_a_gang_is_granted_on_one_host_and_every_member_is_rung(
    gang_house: GangScheduler, redis_server: RedisServer
) -> None:
    job_id = gang_house.training(3)
    assert gang_house.dispatch() == 3
    assert gang_house.live() == {"a0": job_id, "a1": job_id, "a2": job_id}
    with redis.Redis(unix_socket_path=str(redis_server.socket)) as client:
        keys = [key.decode() for key in client.keys(f"*{queue_name('')}*") if client.type(key) == b"list"]
    assert sorted(key[-2:] for key in keys) == ["a0", "a1", "a2"]
    assert gang_house.dispatch() == 0


def test_a_gang_that_no_host_can_hold_waits_and_says_why(gang_house: GangScheduler) -> None:
    job_id = gang_house.training(4)
    assert gang_house.dispatch() == 0
    assert job_state(gang_house.db, job_id) == JobState.QUEUED
    with gang_house.db.read() as session:
        reasons = explain(session, gang_house.settings)
    assert reasons == {job_id: "needs 4 slots of one host at once; 3 are online on the largest"}


def test_a_gang_one_of_whose_slots_is_lost_starts_again_elsewhere(gang_house: GangScheduler) -> None:
    job_id = gang_house.training(2)
    gang_house.dispatch()
    assert gang_house.live() == {"b0": job_id, "b1": job_id}
    gang_house.begin(job_id)
    slots.enter(gang_house.db, "b1", "b1-again", gang_house.settings)
    gang_house.reap()
    slots.retire(gang_house.db, ["b1"])
    assert gang_house.dispatch() == 2
    assert set(gang_house.live()) == {"a0", "a1"}
    gang_house.begin(job_id)
    with gang_house.db.read() as session:
        tries = attempts.attempts(session, job_id)
    assert [(attempt.number, attempt.end) for attempt in tries] == [(1, AttemptEnd.LOST), (2, None)]


@pytest.mark.parametrize(("seconds", "is_kept"), [(BRIEF_SECONDS / 2, True), (2 * BRIEF_SECONDS, False)])
def test_a_gang_that_backs_off_briefly_keeps_its_slots(
    gang_house: GangScheduler, seconds: float, is_kept: bool
) -> None:
    high = gang_house.training(3, priority="high")
    with gang_house.db.write() as session:
        session.get_one(Job, high).not_before = gang_house.time + seconds
    slots.retire(gang_house.db, ["b0", "b1"])
    low = gang_house.training(1, priority="low")
    assert gang_house.dispatch() == (0 if is_kept else 1)
    gang_house.time += seconds
    assert gang_house.dispatch() == (3 if is_kept else 0)
    assert set(gang_house.live().values()) == {high if is_kept else low}


def test_a_high_training_preempts_a_lower_one_a_few_times_and_each_goes_on(gang_house: GangScheduler) -> None:
    slots.retire(gang_house.db, ["b0", "b1"])
    low = gang_house.training(3, priority="low")
    gang_house.dispatch()
    for number in range(MOST_PREEMPTIONS + 1):
        low_lease = gang_house.begin(low)
        high = gang_house.training(2, priority="high")
        assert gang_house.dispatch() == 0
        assert leases.renew(gang_house.db, low_lease, lease_seconds=1e9).stop is None, "it has its minimum of time"
        gang_house.time += Settings().preemptable_seconds
        gang_house.beat("a0", "a1", "a2")
        for _ in range(2):  # asking again changes nothing
            assert gang_house.dispatch() == 0
        asked = leases.renew(gang_house.db, low_lease, lease_seconds=1e9).stop
        if number == MOST_PREEMPTIONS:
            assert asked is None, "it was preempted often enough"
            return
        assert asked == "yield"
        leases.release(gang_house.db, low_lease, "stopped")
        gang_house.reap()
        assert job_state(gang_house.db, low) == JobState.QUEUED
        assert gang_house.dispatch() == 2
        assert set(gang_house.live().values()) == {high}
        leases.release(gang_house.db, gang_house.begin(high), "drained")
        job_ledger.cancel(gang_house.db, high)
        gang_house.reap()
        assert gang_house.dispatch() == 3
    pytest.fail("it was preempted without end")
