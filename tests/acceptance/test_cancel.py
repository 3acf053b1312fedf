"""Cancel at any moment of a job's life: it ends as cancelled or completed, and its finished rows can be read."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from scheduler.client.http_client import ApiError, StokerClient
from tests.conftest import wait_until
from tests.support.deployment import Deployment, deployment, numbered_texts
from tests.support.odd_model import WAITS
from tests.support.stack import nothing_left_at_work

NUM_ROWS = 64
CHUNK_ROWS = 8
JOBS_IN_A_ROUND = 3
"""More jobs than slots, so that some are cancelled while they wait."""
LEAST_ROUNDS, MOST_ROUNDS = 5, 50


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One slot, whose runner is killed when it does not stop within a second."""
    quick = {"STOKER_LEASE_SECONDS": "3", "STOKER_GRACE_SECONDS": "1"}
    with deployment(tmp_path_factory.mktemp("cancel"), **quick) as running:
        yield running


def spec_of(deployed: Deployment, name: str, *, waits_at: int | None = None) -> dict[str, Any]:
    """A job of eight small chunks, of which one may wait for the gate."""
    texts = numbered_texts(NUM_ROWS, {} if waits_at is None else {waits_at: WAITS})
    return deployed.spec(name, texts, chunk_rows=CHUNK_ROWS)


@pytest.fixture(autouse=True)
def _slots_free_for_the_next(deployed: Deployment) -> Iterator[None]:
    with nothing_left_at_work(deployed.stack, deployed.gate):
        yield


def test_cancel_at_random_moments(deployed: Deployment) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    document = spec_of(deployed, "rows")
    calm = deployed.completed(document)
    expected = {result["row_index"]: result for result in deployed.stack.results(calm)}
    cancelled: list[str] = []
    seen: Counter[str] = Counter()
    with deployed.stack.client() as client:
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
            cancels = sorted((moments.uniform(0.0, end), job_id) for end, job_id in zip(ends, jobs, strict=True))
            for delay_seconds, job_id in cancels:  # a cancel at a random time is what is tested
                time.sleep(max(0.0, began + delay_seconds - time.monotonic()))
                seen[cancel(client, job_id)] += 1
            for job_id in jobs:
                job = client.wait(job_id, timeout_seconds=300)
                assert job["state"] in ("cancelled", "completed")
                deployed.records.assert_sound(job_id)
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
    assert len(deployed.stack.results(job_id)) == deployed.records.job(job_id).num_done
    assert_the_slot_works(deployed, list(expected.values()))


def cancel(client: StokerClient, job_id: str) -> str:
    """The state that the job then has, or `ended` where the cancel came too late."""
    try:
        return str(client.cancel(job_id)["state"])
    except ApiError as error:
        if error.status != 409:
            raise
        return "ended"


def test_cancel_in_each_phase_that_can_be_held(deployed: Deployment) -> None:
    deployed.gate.unlink(missing_ok=True)
    with deployed.stack.client() as client:
        early = client.submit(spec_of(deployed, "early", waits_at=0))["id"]
        client.cancel(early)
        assert client.wait(early, timeout_seconds=300)["state"] == "cancelled"
        stuck = client.submit(spec_of(deployed, "stuck", waits_at=40))["id"]
        queued = client.submit(spec_of(deployed, "queued"))["id"]
        wait_until(lambda: deployed.records.num_rows_done(stuck) == 40, "all rows before the one that waits are done")
        wait_until(lambda: client.job(queued)["state"] == "queued", "the second job waits")
        assert client.cancel(queued)["state"] == "cancelled"
    assert json.loads(deployed.stack.run("cancel", stuck, "--wait", "--json").stdout)["state"] == "cancelled"
    for job_id in (early, stuck, queued):
        deployed.records.assert_sound(job_id)
    assert [result["row_index"] for result in deployed.stack.results(stuck)] == list(range(40))
    assert deployed.stack.results(queued) == []
    assert not deployed.records.leases(queued)
    assert_the_slot_works(deployed, None)


def assert_the_slot_works(deployed: Deployment, expected: list[dict[str, Any]] | None) -> None:
    """After all the cancels no lease is left, and the slot computes the same results as before."""
    wait_until(lambda: not deployed.records.live_leases(), "every lease is given back")
    job_id = deployed.completed(spec_of(deployed, "rows"))
    if expected is not None:
        assert deployed.stack.results(job_id) == expected
    with deployed.stack.client() as client:
        wait_until(lambda: [slot["state"] for slot in client.slots()] == ["online"], "the slot is online")
