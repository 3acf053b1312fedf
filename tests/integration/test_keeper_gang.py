"""The keepers of a gang on a real database: a member frees its device and holds it, and none outlives the gang."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import JobState, LeaseState, StopReason
from jobs.db.tables import Lease
from jobs.errors import LostLease
from jobs.ledger import jobs as job_ledger
from jobs.ledger import planning, slots
from jobs.ledger.leasing import gangs, grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.leasing.leases import WorkingLease
from jobs.specs.inference import parse_spec
from tests.conftest import wait_until
from tests.support.slot_keeper import SLOT, SlotKeeper
from worker.stop import Stop
from worker.training.attempt.gang_start import wait_for_gang

OTHER = "here-cpu1"


class GangKeeper(SlotKeeper):
    """One slot's keeper, and a second slot whose worker is the test."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database, start_seconds=60.0)
        slots.register(database, [slots.SlotInfo(OTHER, "here", "cpu", None, "CPU", 0, 3)])
        slots.enter(database, OTHER, "other-1", settings)

    def training(self, model: str = "wait") -> str:
        document = {
            "kind": "training", "task": "text-classification", "model": model, "data": {"train": "x.jsonl"}, "slots": 2,
        }  # fmt: skip
        job = job_ledger.submit(self.database, parse_spec(document))
        planning.enqueue(self.database, job.id)
        return job.id

    def gang(self, *, leads: bool, model: str = "wait") -> tuple[str, str]:
        """A granted gang: the lease that the keeper is to hold, and the other, which the test has taken up."""
        order = (SLOT, OTHER) if leads else (OTHER, SLOT)
        grant = Grant(self.training(model), order)
        by_slot = dict(zip(order, grants.grant(self.database, grant, lease_seconds=30.0), strict=True))
        self.take_up(by_slot[OTHER])
        return by_slot[SLOT], by_slot[OTHER]

    def take_up(self, lease_id: str) -> WorkingLease:
        lease = leases.activate(self.database, lease_id, "other-1", lease_seconds=60.0)
        assert lease is not None
        return lease

    @contextmanager
    def holding(self, lease_id: str) -> Iterator[None]:
        """Have the keeper hold a lease in a separate thread, and wait for its end after the block."""
        thread = threading.Thread(target=self.keeper.run_lease, args=(lease_id,), daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self.keeper.abandon()  # nothing else ends the lease of a failed test
            raise
        finally:
            thread.join(300)
        assert not thread.is_alive(), "the keeper still holds the lease"

    def is_held(self, lease_id: str) -> bool:
        return self.lease(lease_id).held_at is not None

    def find(self, lease_id: str) -> tuple[LeaseState, str | None]:
        lease: Lease = self.lease(lease_id)
        return lease.state, lease.end_reason


@pytest.fixture
def open_keeper(
    settings: Settings, sqlite_database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Opens a keeper whose leases outlast the test, so that nothing that is seen follows from an expired lease."""

    @contextmanager
    def opened(**changes: Any) -> Iterator[GangKeeper]:
        values = {"redis_url": redis_url, "lease_seconds": 60.0, "grace_seconds": 5.0, "retry_seconds": 0.05, **changes}
        changed = settings.model_copy(update=values)
        for name, value in (("DATA_DIR", changed.data_dir), ("DATABASE_URL", changed.database_url)):
            monkeypatch.setenv(f"STOKER_{name}", str(value))
        slot = GangKeeper(changed, sqlite_database)
        try:
            yield slot
        finally:
            slot.close()
            assert all(runner.is_gone for runner in slot.runners), "a runner is left behind"

    return opened


def test_a_member_frees_its_device_and_has_a_runner_again_afterwards(
    open_keeper: Callable[..., Any],
) -> None:
    with open_keeper() as slot:
        assert slot.ready.acquire(timeout=300)
        mine, leaders = slot.gang(leads=False)
        with slot.holding(mine):
            wait_until(lambda: slot.is_held(mine), "the member holds its slot")
            assert slot.runners[0].is_gone
            assert len(slot.runners) == 1, "nothing else takes the device"
            assert all(place.is_held for place in gangs.ranks(slot.database, leaders))
            leases.release(slot.database, leaders, "drained")
        assert slot.find(mine) == (LeaseState.RELEASED, "its gang has ended: drained")
        assert slot.ready.acquire(timeout=300), "the slot has a runner for its next lease"
        assert slot.broken == []


def test_a_member_that_is_rung_while_its_runner_starts_holds_its_slot(
    open_keeper: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_START", "hang")
    with open_keeper() as slot:
        mine, leaders = slot.gang(leads=False)
        wait_until(lambda: slot.runners, "a runner is being started")
        with slot.holding(mine):
            wait_until(lambda: slot.is_held(mine), "the member holds its slot")
            monkeypatch.delenv("STANDIN_START")
            leases.release(slot.database, leaders, "drained")
        assert slot.ready.acquire(timeout=300)
        assert slot.broken == [], "a runner that was not wanted is no broken slot"


def test_a_members_slot_takes_the_next_lease(open_keeper: Callable[..., Any], tmp_path: Any) -> None:
    with open_keeper() as slot:
        mine, leaders = slot.gang(leads=False)
        with slot.holding(mine):
            wait_until(lambda: slot.is_held(mine), "the member holds its slot")
            leases.release(slot.database, leaders, "drained")
        assert slot.run(slot.job(tmp_path, "obey")).state == LeaseState.RELEASED


def test_a_member_ends_when_its_gang_has_ended(open_keeper: Callable[..., Any]) -> None:
    with open_keeper() as slot:
        mine, _ = slot.gang(leads=False)
        with slot.holding(mine):
            wait_until(lambda: slot.is_held(mine), "the member holds its slot")
            slots.enter(slot.database, OTHER, "other-2", slot.settings)
        assert slot.find(mine) == (LeaseState.REVOKED, "its gang has ended: its worker was restarted")


def test_a_member_that_goes_down_has_the_leader_stop_in_order(open_keeper: Callable[..., Any]) -> None:
    with open_keeper() as slot:
        mine, leaders = slot.gang(leads=False)
        with slot.holding(mine):
            wait_until(lambda: slot.is_held(mine), "the member holds its slot")
            slot.keeper.stop()
            wait_until(lambda: gangs.read_status(slot.database, leaders).shutdown_asked, "the leader is asked")
            assert slot.find(mine) == (LeaseState.ACTIVE, None), "the member waits for it"
            assert leases.renew(slot.database, leaders, lease_seconds=60.0).stop == "shutdown"
            leases.release(slot.database, leaders, "stopped")
        assert slot.find(mine) == (LeaseState.RELEASED, "its gang has ended: stopped")
        assert len(slot.runners) == 1, "a worker that goes down starts no runner"


def test_a_member_whose_leader_does_not_stop_leaves_within_the_grace(open_keeper: Callable[..., Any]) -> None:
    with open_keeper(grace_seconds=0.2) as slot:
        mine, leaders = slot.gang(leads=False)
        with slot.holding(mine):
            wait_until(lambda: slot.is_held(mine), "the member holds its slot")
            slot.keeper.stop()
        assert slot.find(mine)[0] == LeaseState.RELEASED
        with pytest.raises(LostLease):
            leases.renew(slot.database, leaders, lease_seconds=60.0)


def test_a_member_that_goes_down_before_its_lease_leaves_at_once(open_keeper: Callable[..., Any]) -> None:
    with open_keeper() as slot:
        mine, leaders = slot.gang(leads=False)
        slot.keeper.stop()
        with slot.holding(mine):
            pass
        assert slot.find(mine) == (LeaseState.RELEASED, "shutdown: before the gang was complete")
        assert not gangs.read_status(slot.database, leaders).is_active


def test_a_leader_is_killed_as_soon_as_its_gang_is_gone(open_keeper: Callable[..., Any]) -> None:
    with open_keeper() as slot:
        mine, members = slot.gang(leads=True, model="deaf")
        with slot.holding(mine):
            wait_until(lambda: slot.runner_pool.warm_models, "the runner works")
            leases.release(slot.database, members, "shutdown")
        assert slot.runners[0].is_gone
        assert slot.find(mine) == (LeaseState.RELEASED, "its gang has ended: shutdown")


def test_a_leader_stops_for_a_member_that_goes_down(open_keeper: Callable[..., Any]) -> None:
    with open_keeper() as slot:
        mine, members = slot.gang(leads=True)
        with slot.holding(mine):
            wait_until(lambda: slot.runner_pool.warm_models, "the runner works")
            gangs.ask_shutdown(slot.database, members)
        assert slot.find(mine) == (LeaseState.RELEASED, "stopped")
        assert not slot.runners[0].is_gone
        assert slot.find(members)[0] == LeaseState.RELEASED


# -- the leader's wait for its members


def rank_of(rank: int, slot_id: str, *, num_threads: int) -> gangs.Rank:
    return gangs.Rank(rank, slot_id, None, num_threads, is_live=True, is_held=True)


class WatchedStop(Stop):
    """A stop that reports each wait for it: the leader has read the state of its gang, which was not complete."""

    def __init__(self, on_wait: Callable[[int], None]) -> None:
        super().__init__()
        self.number = 0
        self._on_wait = on_wait

    def wait(self, timeout_seconds: float | None = None) -> bool:
        self.number += 1
        self._on_wait(self.number)
        return super().wait(timeout_seconds)


def test_a_leader_waits_until_every_slot_is_held(open_keeper: Callable[..., Any]) -> None:
    with open_keeper() as slot:
        lease_ids = grants.grant(slot.database, Grant(slot.training(), (OTHER, SLOT)), lease_seconds=30.0)
        leader = slot.take_up(lease_ids[0])
        with ExitStack() as holding:

            def members_come(number: int) -> None:
                if number == 2:
                    holding.enter_context(slot.holding(lease_ids[1]))

            stop = WatchedStop(members_come)
            places = wait_for_gang(leader, database=slot.database, stop=stop)
            assert places == (rank_of(0, OTHER, num_threads=3), rank_of(1, SLOT, num_threads=1))
            assert stop.number >= 2
            leases.release(slot.database, leader.lease_id, "drained")


def test_a_leader_whose_gang_falls_apart_has_lost_its_lease(open_keeper: Callable[..., Any]) -> None:
    with open_keeper() as slot:
        lease_ids = grants.grant(slot.database, Grant(slot.training(), (OTHER, SLOT)), lease_seconds=30.0)
        leader = slot.take_up(lease_ids[0])

        stop = WatchedStop(lambda _: slots.retire(slot.database, [SLOT]))
        with pytest.raises(LostLease):
            wait_for_gang(leader, database=slot.database, stop=stop)


def test_a_leader_that_is_to_stop_does_not_wait_any_longer(open_keeper: Callable[..., Any]) -> None:
    with open_keeper() as slot:
        lease_ids = grants.grant(slot.database, Grant(slot.training(), (OTHER, SLOT)), lease_seconds=30.0)
        leader = slot.take_up(lease_ids[0])
        stop = WatchedStop(lambda _: stop.request(StopReason.SHUTDOWN))
        assert wait_for_gang(leader, database=slot.database, stop=stop) is None
        with slot.database.read() as session:
            assert job_ledger.get(session, leader.job_id).state == JobState.RUNNING


def test_a_lease_outside_a_gang_does_not_wait(open_keeper: Callable[..., Any]) -> None:
    with open_keeper() as slot:
        (lease_id,) = grants.grant(slot.database, Grant(slot.training(), (OTHER,)), lease_seconds=30.0)
        alone = slot.take_up(lease_id)
        assert wait_for_gang(alone, database=slot.database, stop=Stop()) == (rank_of(0, OTHER, num_threads=3),)
