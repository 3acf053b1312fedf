"""What projects use is counted when a lease ends, and live leases are added when it is read; on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp2

import pytest

from jobs.config.settings import Settings
from jobs.data.sources import ChunkRange
from jobs.db.database import Database
from jobs.ledger import jobs as job_ledger
from jobs.ledger import planning, slots
from jobs.ledger.accounts.project_use import HALF_LIFE_SECONDS, Use, is_exhausted, uses
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.specs.inference import parse_spec

SPEC = parse_spec({"task": "embeddings", "model": "org/model", "input": {"path": "x.jsonl"}})
HOUR = 3600.0


class Ledger:
    """A database whose clock the test sets, with three slots."""

    def __init__(self, url: str) -> None:
        self.time = 1_000_000.0
        self.db = Database(url, clock=lambda: self.time)
        names = ["s0", "s1", "s2"]
        slots.register(self.db, [slots.SlotInfo(name, "host", "cuda", f"G-{name}", "card", 0, 1) for name in names])

    def job(self, project: str) -> str:
        job = job_ledger.submit(self.db, SPEC, project=project)
        planning.plan(self.db, job.id, [ChunkRange(number * 10, number * 10 + 10, {}) for number in range(9)])
        return job.id

    def lease(self, job_id: str, slot_id: str) -> str:
        [granted] = grants.grant_all(self.db, [Grant(job_id, (slot_id,))], lease_seconds=1e9)
        lease_id = granted.rings[0].lease_id
        leases.activate(self.db, lease_id, slot_id, lease_seconds=1e9)
        return lease_id

    def uses(self) -> dict[str, Use]:
        with self.db.read() as session:
            return uses(session, self.time)


@pytest.fixture
def ledger(database_url: str, database: Database) -> Iterator[Ledger]:
    found = Ledger(database_url)
    for name in ("s0", "s1", "s2"):
        slots.enter(found.db, name, name, Settings())
    yield found
    found.db.close()


def test_ended_and_live_leases_are_summed_by_project(ledger: Ledger) -> None:
    first, second = ledger.job("one"), ledger.job("two")
    ended, _ = ledger.lease(first, "s0"), ledger.lease(first, "s1")
    ledger.lease(second, "s2")
    ledger.time += HOUR
    leases.release(ledger.db, ended, "done")
    ledger.time += HOUR
    found = ledger.uses()
    assert {name: (use.num_held, use.month_seconds) for name, use in found.items()} == {
        "one": (1, pytest.approx(3 * HOUR)), "two": (1, pytest.approx(2 * HOUR)),
    }  # fmt: skip


def test_use_decays_as_if_each_second_were_counted_by_itself(ledger: Ledger) -> None:
    job_id = ledger.job("one")
    begun = []
    for held, pause in ((5 * HOUR, HOUR), (30 * HOUR, 0.0), (2 * HOUR, 9 * HOUR)):
        lease_id = ledger.lease(job_id, "s0")
        begun.append((ledger.time, ledger.time + held))
        ledger.time += held
        leases.release(ledger.db, lease_id, "done")
        ledger.time += pause
    summed = sum(
        exp2(-(ledger.time - end) / HALF_LIFE_SECONDS) - exp2(-(ledger.time - start) / HALF_LIFE_SECONDS)
        for start, end in begun
    )
    assert ledger.uses()["one"].num_slots == pytest.approx(summed)


def test_a_slot_that_is_held_for_long_counts_as_one(ledger: Ledger) -> None:
    ledger.lease(ledger.job("one"), "s0")
    ledger.time += 20 * HALF_LIFE_SECONDS
    assert ledger.uses()["one"].num_slots == pytest.approx(1.0, abs=1e-5)


def test_nothing_is_counted_if_the_transaction_fails(ledger: Ledger) -> None:
    lease_id = ledger.lease(ledger.job("one"), "s0")
    ledger.time += HOUR
    leases.release(ledger.db, lease_id, "done")
    before = ledger.uses()
    with pytest.raises(leases.LostLease):
        leases.release(ledger.db, lease_id, "again")
    assert ledger.uses() == before


def test_a_month_begins_anew(ledger: Ledger) -> None:
    lease_id = ledger.lease(ledger.job("one"), "s0")
    ledger.time += HOUR
    leases.release(ledger.db, lease_id, "done")
    ledger.time += 31 * 24 * HOUR
    use = ledger.uses()["one"]
    assert use.month_seconds == 0
    assert use.num_slots > 0


def test_hours_are_used_up_at_their_limit() -> None:
    assert is_exhausted(Use(month_seconds=2 * HOUR), 2.0)
    assert not is_exhausted(Use(month_seconds=2 * HOUR), 2.1)
    assert is_exhausted(Use(), 0.0)
    assert not is_exhausted(Use(month_seconds=1e9), None)
