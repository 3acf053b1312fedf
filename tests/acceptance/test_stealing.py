"""One job on two slots: both work to the end, a slow chunk holds nobody up, and the results are those of one slot."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.db.states import ChunkState
from tests.conftest import wait_until
from tests.support.odd_model import WAITS, odd_encoder, trusting
from tests.support.records import Records, records_of
from tests.support.stack import Stack, nothing_left_at_work, stack
from tests.support.tiny import SENTENCES

CHUNK_ROWS = 64
NUM_CHUNKS = 60
LEAST_SHARE = 5
"""Chunks that each of two slots must have computed of a job, at the very least."""
MOST_MISSED = 6
"""Chunks that others may take up while a slot has none: what passes while one transaction waits for another."""
MOST_HELD_BACK = 3
"""Chunks that a slot may hold while it is stuck in one: that one, and what it claimed before it knew its speed."""

pytestmark = pytest.mark.slow


@dataclass
class Site:
    """A running stack and what the tests give it."""

    stack: Stack
    records: Records
    folder: Path
    model: Path
    gate: Path

    def spec(self, name: str, texts: list[str], **fields: Any) -> dict[str, Any]:
        """A job over these texts."""
        path = self.folder / name
        lines = (json.dumps({"id": f"r{row}", "text": text}) for row, text in enumerate(texts))
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        document = {"task": "embeddings", "model": str(self.model), "input": {"path": str(path), "key": "id"}}
        return {**document, "batching": {"chunk_rows": CHUNK_ROWS}, **fields}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two slots."""
    folder = tmp_path_factory.mktemp("stealing")
    gate = folder / "gate"
    model = odd_encoder(folder / "model", gate=gate)
    with stack(folder / "data", slots=2, **trusting(model, folder / "modules")) as running, records_of(running) as seen:
        yield Site(running, seen, folder, model, gate)


@pytest.fixture(autouse=True)
def _slots_free_for_the_next(site: Site) -> Iterator[None]:
    with nothing_left_at_work(site.stack, site.gate):
        yield


def texts_of(num_rows: int) -> list[str]:
    """Texts of varied length."""
    chosen = random.Random(11)
    return [f"{row} {' '.join(chosen.choices(SENTENCES, k=chosen.randint(1, 3)))}" for row in range(num_rows)]


def test_two_slots_share_a_job_to_its_end_and_change_no_bit(site: Site) -> None:
    texts = texts_of(CHUNK_ROWS * NUM_CHUNKS)
    for chunk in range(8):  # whichever of these a slot claims first, it waits there for the other one
        texts[chunk * CHUNK_ROWS] += f" {WAITS}"
    site.gate.unlink(missing_ok=True)
    shared = site.stack.submit(site.spec("shared.jsonl", texts))
    wait_until(lambda: len(slots_that_claimed(site.records, shared)) == 2, "both slots claim chunks", 120)
    site.gate.touch()
    assert site.stack.await_end(shared, 120)["state"] == "completed"
    site.records.assert_sound(shared)

    by_lease = {lease.id: lease.slot_id for lease in site.records.leases(shared)}
    owners = [by_lease[chunk.lease_id or ""] for chunk in site.records.chunks(shared)]
    shares = {slot: owners.count(slot) for slot in set(owners)}
    print(f"shares {shares}, missed {chunks_missed(site.records, shared, NUM_CHUNKS)}")
    assert len(shares) == 2
    assert min(shares.values()) >= LEAST_SHARE
    assert max(chunks_missed(site.records, shared, NUM_CHUNKS).values()) <= MOST_MISSED

    alone = site.stack.submit(site.spec("shared.jsonl", texts, slots={"max": 1}))
    assert site.stack.await_end(alone, 120)["state"] == "completed"
    assert len({lease.slot_id for lease in site.records.leases(alone)}) == 1
    assert site.stack.results(shared) == site.stack.results(alone)


def test_a_slow_chunk_holds_nobody_up(site: Site) -> None:
    texts = texts_of(CHUNK_ROWS * NUM_CHUNKS)
    texts[5] += f" {WAITS}"
    site.gate.unlink(missing_ok=True)
    job_id = site.stack.submit(site.spec("slow.jsonl", texts))

    def only_the_stuck_one_is_left() -> bool:
        left = [chunk for chunk in site.records.chunks(job_id) if chunk.state != ChunkState.DONE]
        return bool(left) and len(left) <= MOST_HELD_BACK and len({chunk.lease_id for chunk in left}) == 1

    wait_until(only_the_stuck_one_is_left, "everything but the slow chunk is done", 120)
    assert site.records.chunks(job_id)[0].state == ChunkState.LEASED
    assert site.records.job(job_id).num_done >= CHUNK_ROWS * (NUM_CHUNKS - MOST_HELD_BACK)
    site.gate.touch()
    assert site.stack.await_end(job_id, 60)["state"] == "completed"
    site.records.assert_sound(job_id)


def slots_that_claimed(records: Records, job_id: str) -> set[str]:
    """Slots that have claimed chunks of a job."""
    return {claim["slot"] for claim in records.data(job_id, "chunks.claimed")}


def chunks_missed(records: Records, job_id: str, num_chunks: int) -> dict[str, int]:
    """For each slot, how many chunks others claimed while it had worked before, held none, and some were pending."""
    held: dict[str, int] = {}
    missed: dict[str, int] = {}
    num_pending = num_chunks
    for event in records.events(job_id, "chunks.claimed", "chunks.done"):
        slot = event.data["slot"]
        if event.name == "chunks.done":
            held[slot] -= event.data["chunks"]
            continue
        claimed = len(event.data["start_rows"])
        for other in held:
            if other != slot and not held[other] and num_pending > 0:
                missed[other] += claimed
        held[slot] = held.get(slot, 0) + claimed
        missed.setdefault(slot, 0)
        num_pending -= claimed
    return missed
