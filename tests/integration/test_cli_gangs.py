"""What people and programs see of a gang: why it waits, which slots it holds, and where each of its attempts ran."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.ledger import attempts, overdue, planning, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.specs.inference import parse_spec
from scheduler.cli import main
from scheduler.control.leader import Leader
from tests.support.live_api import LiveApi, live_api

SLOTS = ("here-gpu0", "here-gpu1", "here-gpu2")


@pytest.fixture
def api(settings: Settings, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveApi]:
    """A running API with a scheduler that leads, and three slots of one host."""
    handlers = logging.getLogger().handlers[:]
    patient = settings.model_copy(update={"slot_seconds": 600.0})
    infos = [slots.SlotInfo(name, "here", "cuda", f"GPU-{name}", "card", 0, 1) for name in SLOTS]
    slots.register(sqlite_database, infos)
    for name in SLOTS:
        slots.enter(sqlite_database, name, name, patient)
    leader = Leader(sqlite_database, leader_seconds=600)
    leader.acquire()
    with live_api(patient, sqlite_database) as running:
        monkeypatch.setenv("STOKER_URL", running.url)
        monkeypatch.setenv("STOKER_API_KEY", running.key)
        yield running
    leader.resign()
    logging.getLogger().handlers[:] = handlers


def queued(api: LiveApi, num_slots: int) -> str:
    """A training that waits for `num_slots` slots."""
    document = {
        "kind": "training", "task": "text-classification", "model": "m", "data": {"train": "x.jsonl"},
        "slots": num_slots,
    }  # fmt: skip
    job = job_ledger.submit(api.database, parse_spec(document))
    planning.enqueue(api.database, job.id)
    return job.id


def begun(api: LiveApi, job_id: str, *slot_ids: str) -> str:
    """Grant a gang these slots and have it begin; gives the leader's lease."""
    lease_ids = grants.grant(api.database, Grant(job_id, slot_ids), lease_seconds=600.0)
    for lease_id, slot_id in zip(lease_ids, slot_ids, strict=True):
        assert leases.activate(api.database, lease_id, slot_id, lease_seconds=600.0) is not None
    attempts.begin(api.database, lease_ids[0], resumed_step=0)
    return lease_ids[0]


def shown(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints."""
    capfd.readouterr()
    assert main(arguments) == 0
    return capfd.readouterr().out


def test_a_gang_that_no_host_can_hold_shows_why_it_waits(api: LiveApi, capfd: Any) -> None:
    job_id = queued(api, 4)
    why = "needs 4 slots of one host at once; the largest host has 3 online"
    job = json.loads(shown(capfd, "status", job_id, "--json"))
    assert (job["state"], job["waiting_reason"]) == ("queued", why)
    assert why in " ".join(shown(capfd, "status", job_id).split())


def test_a_gang_that_could_start_shows_no_other_reason(api: LiveApi) -> None:
    assert api.client.job(queued(api, 3))["waiting_reason"] == "it will get a slot in a moment"


def test_every_slot_of_a_gang_is_shown_as_its_jobs(api: LiveApi, capfd: Any) -> None:
    job_id = queued(api, 3)
    begun(api, job_id, *SLOTS)
    assert {slot["id"]: slot["job_id"] for slot in api.client.slots()} == dict.fromkeys(SLOTS, job_id)
    assert shown(capfd, "slots").count(job_id) == 3
    assert api.client.job(job_id)["slots_held"] == 3


def test_an_attempt_shows_the_slots_on_which_it_ran(api: LiveApi, capfd: Any) -> None:
    job_id = queued(api, 2)
    leases.release(api.database, begun(api, job_id, SLOTS[2], SLOTS[0]), "stopped")
    overdue.requeue_idle(api.database)
    begun(api, job_id, SLOTS[1], SLOTS[0])
    tries = api.http.get(f"/v1/jobs/{job_id}/attempts").json()["data"]
    assert [(each["number"], each["slot_id"], each["slots"], each["end"]) for each in tries] == [
        (1, SLOTS[2], [SLOTS[2], SLOTS[0]], "shutdown"),
        (2, SLOTS[1], [SLOTS[1], SLOTS[0]], None),
    ]
    out = " ".join(shown(capfd, "status", job_id).split())
    assert f"{SLOTS[2]}, {SLOTS[0]}" in out


def test_only_an_attempt_that_did_not_complete_shows_a_reason(api: LiveApi, capfd: Any) -> None:
    job_id = queued(api, 1)
    leases.release(api.database, begun(api, job_id, SLOTS[0]), "stopped")
    overdue.requeue_idle(api.database)
    leader = begun(api, job_id, SLOTS[1])
    attempts.finish(api.database, leader, [], step=6)
    leases.release(api.database, leader, "drained")
    out = " ".join(shown(capfd, "status", job_id).split())
    assert "shutdown stopped" in out
    assert "completed" in out
    assert "drained" not in out


def test_status_shows_the_activity_of_slots_and_its_duration(api: LiveApi, capfd: Any) -> None:
    job_id = queued(api, 2)
    leader = begun(api, job_id, *SLOTS[:2])
    leases.renew(
        api.database, leader, lease_seconds=600.0, doing=leases.RunnerActivity("training step 6", seconds=7200.0)
    )
    status = " ".join(shown(capfd, "status", job_id).split())
    assert "training step 6 for 2h00m" in status
    assert "starting for " in status
    assert f"{job_id}: training step 6 for 2h00m" in " ".join(shown(capfd, "slots").split())
