"""What a job needs of its slots: read from the spec, checked at submission, stored, and shown, on both databases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.errors import InvalidSpec
from jobs.ledger import jobs as job_ledger
from jobs.ledger import slots
from jobs.specs.inference import parse_spec
from jobs.specs.needs import Needs, NeedsSpec, in_gigabytes
from jobs.specs.packages import needs_of_spec
from scheduler.control.planning.package_checks import check_needs
from scheduler.control.planning.planner import plan_job
from tests.support.rows import write_rows

GB = 10**9


def spec_with(needs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A spec with needs."""
    return {"task": "fill-mask", "model": "org/name", "input": {"path": "rows.jsonl"}, "needs": needs, **fields}


def register(db: Database, settings: Settings, *hosts: tuple[str, int, Sequence[str]], runs: bool = True) -> None:
    """A slot on each host, with a device, gigabytes of memory and labels."""
    for number, (device, gigabytes, labels) in enumerate(hosts):
        info = slots.SlotInfo(f"s{number}", f"h{number}", device, None, "x", gigabytes * GB, 1, ["vllm"], labels)
        slots.register(db, [info])
        if runs:
            slots.enter(db, info.id, f"{info.id}-1", settings)


@pytest.mark.parametrize(
    ("memory", "num_bytes"),
    [
        ("40GB", 40 * GB),
        ("40 gb", 40 * GB),
        ("1.5GiB", 3 * 2**29),
        ("80000000000", 80 * GB),
        (7, 7),
        ("2tb", 2000 * GB),
    ],
)
def test_memory_is_read_in_bytes_and_stored_so(memory: str | int, num_bytes: int) -> None:
    for kind in ({}, {"kind": "training", "trainer": "torch", "module": "recipes.cnn"}):
        document = spec_with({"memory": memory}) if not kind else {**kind, "needs": {"memory": memory}}
        spec = parse_spec(document)
        assert spec.needs.memory == num_bytes
        assert parse_spec(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("needs", "param"),
    [
        ({"memory": "much"}, "needs.memory"),
        ({"memory": 0}, "needs.memory"),
        ({"memory": "0GB"}, "needs.memory"),
        ({"memory": "40 PB"}, "needs.memory"),
        ({"memory": -1}, "needs.memory"),
        ({"device": "tpu"}, "needs.device"),
        ({"labels": ["a b"]}, "needs.labels"),
        ({"labels": [""]}, "needs.labels"),
        ({"labels": "a100"}, "needs.labels"),
        ({"labels": ["x"] * 33}, "needs.labels"),
        ({"gpus": 1}, "needs.gpus"),
    ],
)
def test_invalid_needs_are_refused_by_name(needs: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(spec_with(needs))
    assert (refused.value.param or "").startswith(param)
    assert refused.value.message.startswith(param)


@pytest.mark.parametrize(
    ("needs", "sentence"),
    [
        ({"device": "cuda"}, None),
        ({"memory": "40GB"}, None),
        ({"memory": "40GB", "device": "cuda", "labels": ["a100"]}, None),
        ({"labels": ["a100", "nvlink"]}, None),
        ({"memory": "100GB"}, "needs.memory: no slot has 100 GB of memory; ask for less, or start a larger worker"),
        ({"memory": "80GB", "device": "cpu"}, "needs.memory: no slot has 80 GB of memory beside device cpu; ask for"),
        ({"labels": ["h100"]}, "needs.labels: no slot has label h100; start a worker with `--label`, or leave"),
        (
            {"memory": "60GB", "device": "cuda", "labels": ["a100"]},
            "needs.labels: no slot has label a100 beside 60 GB of memory, device cuda; start a worker with",
        ),
    ],
)
def test_needs_that_no_slot_meets_are_refused_with_what_is_missing(
    database: Database, settings: Settings, needs: dict[str, Any], sentence: str | None
) -> None:
    wanted = list(needs_of_spec(parse_spec(spec_with(needs))))
    hosts = ("cuda", 42, ["a100", "nvlink"]), ("cuda", 85, []), ("cpu", 30, [])
    check_needs(wanted, database)  # no slot has registered yet
    register(database, settings, *hosts, runs=False)
    check_needs(wanted, database)  # none of them runs, so the next one to start may meet them
    register(database, settings, *hosts)
    if sentence is None:
        check_needs(wanted, database)
        return
    with pytest.raises(InvalidSpec) as refused:
        check_needs(wanted, database)
    assert refused.value.message.startswith(sentence)
    assert refused.value.message.startswith(f"{refused.value.param}: ")


def test_needs_and_packages_must_be_met_by_one_slot(database: Database, settings: Settings) -> None:
    document = {**spec_with({"labels": ["a100"]}), "task": "video-classification"}
    wanted = list(needs_of_spec(parse_spec(document)))
    register(database, settings, ("cuda", 42, ["a100"]))
    with pytest.raises(InvalidSpec, match=r"^task: .* needs the package av, which no slot has beside label a100;"):
        check_needs(wanted, database)


def test_a_planned_job_keeps_its_needs(database: Database, settings: Settings, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 3)
    needs = {"memory": "40GB", "device": "cuda", "labels": ["b", "a"]}
    document = spec_with(needs, input={"path": str(path)})
    job_id = job_ledger.submit(database, parse_spec(document)).id
    plan_job(database, Store(str(tmp_path / "store")), settings, job_id)
    with database.read() as session:
        found = job_ledger.get(session, job_id)
    assert found.state == JobState.QUEUED
    assert found.needs == {"memory_bytes": 40 * GB, "device": "cuda", "labels": ["a", "b"]}
    assert Needs.from_stored(found.needs) == Needs(frozenset(), 40 * GB, "cuda", frozenset("ab"))
    assert Needs.from_stored(None) == Needs.from_stored(Needs().stored()) == Needs()


def test_labels_of_a_host_follow_its_workers_settings(database: Database, settings: Settings) -> None:
    register(database, settings, ("cpu", 1, ["old"]))
    register(database, settings, ("cpu", 1, ["new", "newer"]))
    with database.read() as session:
        assert [slot.labels for slot in slots.list_slots(session)] == [["new", "newer"]]


def test_a_size_is_never_rounded_up() -> None:
    assert [in_gigabytes(each) for each in (42_505_273_344, 40 * GB, 999, 79_999_999_999)] == [
        "42.5 GB",
        "40 GB",
        "999 bytes",
        "79.99 GB",
    ]
    assert NeedsSpec() == NeedsSpec(labels=[])
