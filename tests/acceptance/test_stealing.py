"""One job on two slots: both work to the end, a slow chunk delays no other, and the results are those of one slot."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from jobs.db.states import ChunkState
from tests.conftest import wait_until
from tests.support.deployment import Deployment, deployment
from tests.support.odd_model import WAITS
from tests.support.records import Records
from tests.support.stack import nothing_left_at_work
from tests.support.tiny import SENTENCES

CHUNK_ROWS = 64
NUM_CHUNKS = 60
LEAST_SHARE = 5
"""Chunks that each of two slots must have computed of a job, at the very least."""
MOST_HELD_BACK = 3
"""Chunks that a slot may hold while it is stuck in one: that one, and what it claimed before it knew its speed."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two slots."""
    with deployment(tmp_path_factory.mktemp("stealing"), slots=2) as running:
        yield running


@pytest.fixture(autouse=True)
def _slots_free_for_the_next(deployed: Deployment) -> Iterator[None]:
    with nothing_left_at_work(deployed.stack, deployed.gate):
        yield


def texts_of(num_rows: int) -> list[str]:
    """Texts of varied length."""
    chosen = random.Random(11)
    return [f"{row} {' '.join(chosen.choices(SENTENCES, k=chosen.randint(1, 3)))}" for row in range(num_rows)]


def test_two_slots_share_a_job_to_its_end_and_change_no_bit(deployed: Deployment) -> None:
    texts = texts_of(CHUNK_ROWS * NUM_CHUNKS)
    for chunk in range(8):  # whichever of these a slot claims first, it waits there for the other one
        texts[chunk * CHUNK_ROWS] += f" {WAITS}"
    deployed.gate.unlink(missing_ok=True)
    shared = deployed.stack.submit(deployed.spec("shared", texts, chunk_rows=CHUNK_ROWS))
    wait_until(lambda: len(slots_that_claimed(deployed.records, shared)) == 2, "both slots claim chunks", 120)
    deployed.gate.touch()
    deployed.assert_completed(shared)

    by_lease = {lease.id: lease.slot_id for lease in deployed.records.leases(shared)}
    owners = [by_lease[chunk.lease_id or ""] for chunk in deployed.records.chunks(shared)]
    shares = {slot: owners.count(slot) for slot in set(owners)}
    assert len(shares) == 2
    assert min(shares.values()) >= LEAST_SHARE, shares

    alone = deployed.completed(deployed.spec("shared", texts, chunk_rows=CHUNK_ROWS, slots={"max": 1}))
    assert len({lease.slot_id for lease in deployed.records.leases(alone)}) == 1
    assert deployed.stack.results(shared) == deployed.stack.results(alone)


def test_a_slow_chunk_delays_no_other(deployed: Deployment) -> None:
    texts = texts_of(CHUNK_ROWS * NUM_CHUNKS)
    texts[5] += f" {WAITS}"
    deployed.gate.unlink(missing_ok=True)
    job_id = deployed.stack.submit(deployed.spec("slow", texts, chunk_rows=CHUNK_ROWS))

    def only_the_stuck_one_is_left() -> bool:
        left = [chunk for chunk in deployed.records.chunks(job_id) if chunk.state != ChunkState.DONE]
        return bool(left) and len(left) <= MOST_HELD_BACK and len({chunk.lease_id for chunk in left}) == 1

    wait_until(only_the_stuck_one_is_left, "everything but the slow chunk is done", 120)
    assert deployed.records.chunks(job_id)[0].state == ChunkState.LEASED
    assert deployed.records.job(job_id).num_done >= CHUNK_ROWS * (NUM_CHUNKS - MOST_HELD_BACK)
    deployed.gate.touch()
    deployed.assert_completed(job_id)


def slots_that_claimed(records: Records, job_id: str) -> set[str]:
    """Slots that have claimed chunks of a job."""
    return {claim["slot"] for claim in records.data(job_id, "chunks.claimed")}
