"""Trainings whose micro-batch does not fit: retried with half of it if the spec asks for that, else failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from tests.support.rows import write_rows
from tests.support.stack import Stack, stack
from tests.support.tight_model import tight_classifier

pytestmark = pytest.mark.slow

NUM_STEPS, STEP_ROWS = 8, 4
LONG_FROM_STEP = 6
SHORT, LONG = "film", "film " * 50


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    """Rows in order, long ones from a certain step on; a step has the same rows with any micro-batch."""
    rows = [
        {"text": SHORT if row < (LONG_FROM_STEP - 1) * STEP_ROWS else LONG, "label": "ab"[row % 2]}
        for row in range(NUM_STEPS * STEP_ROWS)
    ]
    path = write_rows(tmp_path / "train.jsonl", rows)
    return {
        "kind": "training",
        "task": "text-classification",
        "data": {"train": str(path)},
        "arguments": {
            "max_steps": NUM_STEPS, "per_device_train_batch_size": STEP_ROWS, "train_sampling_strategy": "sequential",
        },
        "checkpoint": {"every_steps": 2},
    }  # fmt: skip


def tokens(text: str) -> int:
    """Of one row, with those that the tokenizer adds."""
    return len(tiny.wordpiece_tokenizer()(text)["input_ids"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two models: one long row has room in the one, and none in the other."""
    folder = tmp_path_factory.mktemp("tight")
    tight_classifier(folder / "one", most_tokens=tokens(LONG))
    tight_classifier(folder / "none", most_tokens=tokens(LONG) - 1)
    return folder


@pytest.fixture(scope="module")
def daemon(models: Path) -> Iterator[Stack]:
    """A stack with one slot that runs both models; a job fails at its second failure of the machine. Leases last long,
    because one that expires on a busy machine is such a failure."""
    trusted = json.dumps([str(models / "one"), str(models / "none")])
    environment = {"STOKER_TRUSTED_REMOTE_CODE": trusted, "HF_MODULES_CACHE": str(models / "modules")}
    with stack(models / "data", slots=1, **environment, STOKER_LEASE_SECONDS="600", STOKER_JOB_CRASHES="2") as running:
        yield running


def tries(daemon: Stack, job_id: str) -> list[tuple[int, str, int]]:
    """Of each attempt: how often its micro-batch was halved, why it ended, and the step from which it resumed."""
    with daemon.client() as client:
        return [(each["num_halvings"], each["end"], each["resumed_step"]) for each in client.attempts(job_id)]


def summary(daemon: Stack, job_id: str, folder: Path) -> dict[str, Any]:
    """The training's `summary.json`."""
    daemon.run("artifacts", job_id, "--output", str(folder))
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.soak
def test_a_micro_batch_that_does_not_fit_is_halved_until_it_does(
    daemon: Stack, models: Path, tmp_path: Path, spec: dict[str, Any]
) -> None:
    job_id = daemon.submit({**spec, "model": str(models / "one"), "on_out_of_memory": "halve"})
    job = daemon.await_end(job_id, 800.0)
    assert (job["state"], job["counts"]["done"]) == ("completed", NUM_STEPS), job["error"]
    found = tries(daemon, job_id)
    assert [halvings for halvings, _, _ in found] == list(range(len(found))), found
    assert {end for _, end, _ in found[:-1]} == {"out_of_memory"}
    assert found[-1] == (2, "completed", LONG_FROM_STEP - 2), "4 rows, halved to one; what was computed is kept"
    found = summary(daemon, job_id, tmp_path / "made")
    assert (found["micro_batch"], found["accumulation"]) == (1, STEP_ROWS), "a step is still of as many rows"
    with daemon.client() as client:
        steps = [one["step"] for one in client.metrics(job_id, name="loss")]
    assert steps == list(range(1, NUM_STEPS + 1))
    shown = daemon.run("status", job_id).stdout
    assert {"halvings", "out_of_memory"} <= set(shown.split()), shown


@pytest.mark.parametrize(
    ("wanted", "micro_batch", "advice"),
    [
        ("fail", 2, "reduce arguments.per_device_train_batch_size, or set on_out_of_memory: halve"),
        ("halve", 1, "the micro-batch is already 1"),
    ],
)
def test_a_batch_that_cannot_fit_fails_and_names_what_to_change(
    daemon: Stack, models: Path, spec: dict[str, Any], wanted: str, micro_batch: int, advice: str
) -> None:
    spec |= {"model": str(models / "none"), "on_out_of_memory": wanted}
    spec["arguments"] |= {
        "per_device_train_batch_size": micro_batch,
        "max_steps": NUM_STEPS * STEP_ROWS // micro_batch,
    }
    job_id = daemon.submit(spec)
    job = daemon.await_end(job_id, 500.0)
    assert (job["state"], job["error"]["code"]) == ("failed", "training_too_large"), job["error"]
    assert advice in job["error"]["message"]
    assert [end for _, end, _ in tries(daemon, job_id)] == ["out_of_memory"]
