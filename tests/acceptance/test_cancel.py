"""Cancel at any moment of a job's life: it ends as cancelled or completed, never both, and what is done can be read."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scheduler.client.http_client import ApiError, StokerClient
from tests.conftest import wait_until
from tests.support.odd_model import WAITS, odd_encoder, trusting
from tests.support.records import Records, records_of
from tests.support.stack import Stack, nothing_left_at_work, stack
from tests.support.tiny import SENTENCES

NUM_ROWS = 64
CHUNK_ROWS = 8
JOBS_IN_A_ROUND = 3
"""More jobs than slots, so that some are cancelled while they wait."""
LEAST_ROUNDS, MOST_ROUNDS = 5, 50

pytestmark = pytest.mark.slow


@dataclass
class Site:
    """A running stack and what the tests give it."""

    stack: Stack
    records: Records
    folder: Path
    model: Path
    gate: Path

    def spec(self, name: str, *, waits_at: int | None = None, **fields: Any) -> dict[str, Any]:
        """A job of eight small chunks, of which one may wait for the gate."""
        path = self.folder / f"{name}.jsonl"
        with path.open("w", encoding="utf-8") as out:
            for row in range(NUM_ROWS):
                text = f"{WAITS if row == waits_at else ''} {row} {SENTENCES[row % len(SENTENCES)]}"
                out.write(json.dumps({"id": f"r{row}", "text": text}) + "\n")
        document = {"task": "embeddings", "model": str(self.model), "input": {"path": str(path), "key": "id"}}
        return {**document, "batching": {"chunk_rows": CHUNK_ROWS}, **fields}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One slot, whose runner is killed when it does not stop within a second."""
    folder = tmp_path_factory.mktemp("cancel")
    gate = folder / "gate"
    model = odd_encoder(folder / "model", gate=gate)
    quick = {"STOKER_LEASE_SECONDS": "3", "STOKER_GRACE_SECONDS": "1", **trusting(model, folder / "modules")}
    with stack(folder / "data", slots=1, **quick) as running, records_of(running) as seen:
        yield Site(running, seen, folder, model, gate)


@pytest.fixture(autouse=True)
def _slots_free_for_the_next(site: Site) -> Iterator[None]:
    with nothing_left_at_work(site.stack, site.gate):
        yield


def test_cancel_at_random_moments(site: Site) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    calm = site.stack.submit(site.spec("rows"))
    assert site.stack.await_end(calm, 120)["state"] == "completed"
    expected = {result["row_index"]: result for result in site.stack.results(calm)}
    document = site.spec("rows")
    cancelled: list[str] = []
    seen: Counter[str] = Counter()
    with site.stack.client() as client:
        began = time.monotonic()
        warm = [client.submit(document)["id"] for _ in range(JOBS_IN_A_ROUND)]
        assert all(client.wait(job_id, timeout_seconds=300)["state"] == "completed" for job_id in warm)
        round_seconds = time.monotonic() - began
        print(f"{JOBS_IN_A_ROUND} jobs take {round_seconds:.1f} s")
        for number in range(MOST_ROUNDS):
            if number >= LEAST_ROUNDS and seen["cancelled"] and seen["cancelling"] and cancelled:
                break
            outputs = moments.choices(["database", "jsonl", "parquet"], k=JOBS_IN_A_ROUND)
            began = time.monotonic()
            jobs = [client.submit({**document, "output": {"to": output}})["id"] for output in outputs]
            ends = [round_seconds * place / len(jobs) for place in range(1, len(jobs) + 1)]  # about; one slot does all
            shots = sorted((moments.uniform(0.0, end), job_id) for end, job_id in zip(ends, jobs, strict=True))
            for delay_seconds, job_id in shots:  # a moment is a time: nothing else is waited for here
                time.sleep(max(0.0, began + delay_seconds - time.monotonic()))
                seen[cancel(client, job_id)] += 1
            for job_id in jobs:
                job = client.wait(job_id, timeout_seconds=300)
                assert job["state"] in ("cancelled", "completed")
                site.records.assert_sound(job_id)
                results = list(client.iter_results(job_id))
                assert len(results) == job["counts"]["done"]
                assert all(result == expected[result["row_index"]] for result in results)
                if job["state"] == "cancelled" and results:
                    cancelled.append(job_id)
    print(f"answers {dict(seen)}, {len(cancelled)} cancelled with results")
    assert seen["cancelled"], "no cancel came while its job waited"
    assert seen["cancelling"], "no cancel came while its job was running"
    assert cancelled, "no job was cancelled that had results already"
    job_id = cancelled[-1]
    assert len(site.stack.results(job_id)) == site.records.job(job_id).num_done
    assert_the_slot_works(site, list(expected.values()))


def cancel(client: StokerClient, job_id: str) -> str:
    """The state that the job then has, or `ended` where the cancel came too late."""
    try:
        return str(client.cancel(job_id)["state"])
    except ApiError as error:
        if error.status != 409:
            raise
        return "ended"


def test_cancel_in_each_phase_that_can_be_held(site: Site) -> None:
    site.gate.unlink(missing_ok=True)
    with site.stack.client() as client:
        early = client.submit(site.spec("early", waits_at=0))["id"]
        client.cancel(early)
        assert client.wait(early, timeout_seconds=300)["state"] == "cancelled"
        stuck = client.submit(site.spec("stuck", waits_at=40))["id"]
        queued = client.submit(site.spec("queued"))["id"]
        wait_until(lambda: site.records.num_rows_done(stuck) == 40, "all rows before the one that waits are done")
        wait_until(lambda: client.job(queued)["state"] == "queued", "the second job waits")
        assert client.cancel(queued)["state"] == "cancelled"
    assert json.loads(site.stack.run("cancel", stuck, "--wait", "--json").stdout)["state"] == "cancelled"
    for job_id in (early, stuck, queued):
        site.records.assert_sound(job_id)
    assert [result["row_index"] for result in site.stack.results(stuck)] == list(range(40))
    assert site.stack.results(queued) == []
    assert not site.records.leases(queued)
    assert_the_slot_works(site, None)


def assert_the_slot_works(site: Site, expected: list[dict[str, Any]] | None) -> None:
    """After all the cancels no lease is left, and the slot computes what it did before."""
    wait_until(lambda: not site.records.live_leases(), "every lease is given back")
    job_id = site.stack.submit(site.spec("rows"))
    assert site.stack.await_end(job_id, 120)["state"] == "completed"
    site.records.assert_sound(job_id)
    if expected is not None:
        assert site.stack.results(job_id) == expected
    with site.stack.client() as client:
        wait_until(lambda: [slot["state"] for slot in client.slots()] == ["online"], "the slot is online")
