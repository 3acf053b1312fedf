"""Trainings under the daemon: killed at random steps, they have exactly the losses and weights of a calm run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.tables import Job
from jobs.ledger import attempts
from tests.conftest import wait_until
from tests.support import tiny
from tests.support.frozen import frozen
from tests.support.odd_model import trusting
from tests.support.rows import LABELLED, labelled_rows, write_rows
from tests.support.slow_model import slow_classifier
from tests.support.stack import QUICK, Stack, stack
from tests.support.training_progress import attempts_of, await_attempt, await_step, losses

pytestmark = pytest.mark.slow

NUM_STEPS = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def slowly(folder: Path) -> Path:
    """While this file exists, the trainings of `spec` are slow, so that none ends before it is killed."""
    return folder / "slowly"


@pytest.fixture(scope="module")
def spec(folder: Path, slowly: Path) -> dict[str, Any]:
    """A training of a tiny encoder with dropout, a checkpoint each ten steps."""
    return {
        "kind": "training",
        "task": "text-classification",
        "model": str(slow_classifier(folder / "encoder", while_exists=slowly)),
        "data": {
            "train": str(write_rows(folder / "train.jsonl", labelled_rows(200))),
            "eval": str(write_rows(folder / "eval.jsonl", labelled_rows(40))),
        },
        "arguments": {
            "max_steps": NUM_STEPS, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5,
            "logging_steps": 1,
        },
        "checkpoint": {"every_steps": 10, "keep": 2},
    }  # fmt: skip


def of_steps(spec: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """The same training, of another number of steps."""
    return {**spec, "arguments": {**spec["arguments"], "max_steps": num_steps}}


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Stack]:
    """One slot."""
    trusted = trusting(folder / "encoder", folder / "modules")
    with stack(folder / "data", slots=1, **QUICK, **trusted) as running:
        yield running


@pytest.fixture(scope="module")
def calm(running: Stack, spec: dict[str, Any]) -> str:
    """Id of a training that was left alone."""
    job_id = running.submit(spec)
    assert running.await_end(job_id, 360.0)["state"] == "completed"
    return job_id


@pytest.fixture
def database(running: Stack) -> Iterator[Database]:
    """The stack's own."""
    database = Database(Settings(data_dir=running.data_dir).resolved_database_url)
    yield database
    database.close()


def weights(running: Stack, job_id: str) -> str:
    """Digest of the weights that a training made."""
    with running.client() as client:
        return next(one["sha256"] for one in client.artifacts(job_id) if one["name"] == "model/model.safetensors")


def test_an_inference_waits_for_the_training_whose_model_it_names(
    running: Stack, spec: dict[str, Any], folder: Path
) -> None:
    plain = str(tiny.tiny_encoder(folder / "plain"))
    trained = running.submit({**of_steps(spec, 30), "model": plain})
    rows = {"path": spec["data"]["eval"], "columns": {"text": "text"}}
    answers = running.submit({"task": "text-classification", "model": f"job:{trained}", "input": rows})
    for job_id in (trained, answers):
        assert running.await_end(job_id, 360.0)["state"] == "completed"
    labels = {result["output"][0]["label"] for result in running.results(answers)}
    assert labels <= set(LABELLED)
    with running.client() as client:
        assert client.job(trained)["ended_at"] <= client.job(answers)["started_at"]
        names = {artifact["name"] for artifact in client.artifacts(trained)}
    assert {"model/config.json", "model/README.md", "summary.json", "metrics.jsonl", "loss.png"} <= names
    store = Store(Settings(data_dir=running.data_dir).resolved_store_url)
    assert len({key.split("/")[3] for key in store.list(f"jobs/{trained}/checkpoints/")}) <= 2


def test_an_interrupted_training_comes_to_the_same_losses_and_weights(
    running: Stack, spec: dict[str, Any], calm: str, database: Database, slowly: Path
) -> None:
    chosen = random.Random(11)
    slowly.touch()
    killed = running.submit(spec)

    await_step(running, killed, chosen.randint(11, 18))
    await_checkpoint(killed, database)  # it is copied beside the training
    kill(running, "celery")

    await_attempt(running, killed, 2)
    with between_checkpoints(running):
        damaged = damage_newest_checkpoint(killed, database)
        kill(running, "runner")
    kill(running, "scheduler")
    with redis.Redis(unix_socket_path=str(Settings(data_dir=running.data_dir).redis_socket)) as client:
        client.flushall()

    await_attempt(running, killed, 3)
    assert running.stop() == 0
    slowly.unlink()
    running.start()

    job = running.await_end(killed, 600.0)
    assert (job["state"], job["counts"]) == ("completed", {"total": NUM_STEPS, "done": NUM_STEPS, "failed": 0})
    assert losses(running, killed) == losses(running, calm)
    assert [step for step, _ in losses(running, killed)] == list(range(1, NUM_STEPS + 1))
    assert weights(running, killed) == weights(running, calm)
    tries = attempts_of(running, killed)
    assert [one["end"] for one in tries] == ["lost", "machine", "shutdown", "completed"], tries
    assert all(one["resumed_step"] % 10 == 0 for one in tries[:3])
    assert tries[1]["resumed_step"] >= 10
    assert tries[2]["resumed_step"] < damaged, "a checkpoint that is not what was written is passed over"
    assert tries[3]["resumed_step"] == tries[2]["last_step"], "it was stopped with a checkpoint of its last step"
    with running.client() as client:
        names = [event["name"] for event in client.events(killed, follow=False)]
    assert "checkpoint.damaged" in names


def await_checkpoint(job_id: str, database: Database) -> None:
    """Wait until a training's first checkpoint is in the store."""

    def is_kept() -> bool:
        with database.read() as session:
            return bool(attempts.checkpoints(session, job_id))

    wait_until(is_kept, "the first checkpoint")


def kill(running: Stack, role: str) -> None:
    """kill -9 of the one process of a role."""
    (victim,) = running.of_role(role)
    victim.kill()


@contextmanager
def between_checkpoints(running: Stack) -> Iterator[None]:
    """Inside the block, the training's process is frozen, and none of its checkpoints is being uploaded."""
    folder = Settings(data_dir=running.data_dir).training_path
    (held,) = running.of_role("trainer")
    with ExitStack() as stack:

        def is_frozen_between() -> bool:
            """Each checkpoint's folder exists from before it is reported until it is in the store. One that stays may
            not have been reported yet, so the process must run on a little."""
            with ExitStack() as trying:
                trying.enter_context(frozen(held.pid))
                if list(folder.glob("*/*/checkpoint-*")) or list(folder.glob("*/*/saving/checkpoint-*")):
                    return False
                stack.enter_context(trying.pop_all())
            return True

        wait_until(is_frozen_between, "a moment between two checkpoints")
        yield


def damage_newest_checkpoint(job_id: str, database: Database) -> int:
    """Make the newest checkpoint differ from its digests. Returns its step."""
    with database.write() as session:
        newest = attempts.checkpoints(session, job_id)[0]
        newest.files = [{**file, "sha256": "0" * 64} for file in newest.files]
        return newest.step


def test_a_cancelled_training_leaves_no_process_and_a_retry_goes_on(
    running: Stack, spec: dict[str, Any], database: Database
) -> None:
    job_id = running.submit({**of_steps(spec, 100_000), "time_limit": "1h"})
    await_step(running, job_id, 3)
    running.run("cancel", job_id, "--wait")
    with running.client() as client:
        assert client.job(job_id)["state"] == "cancelled"
        step = client.job(job_id)["counts"]["done"]
    assert running.of_role("trainer") == []
    assert attempts_of(running, job_id)[-1]["end"] == "cancelled"

    again = running.run("retry", job_id).stdout.strip()
    await_step(running, again, step + 1)
    assert attempts_of(running, again)[0]["resumed_step"] == step, "what was computed is not lost"
    with database.write() as session:  # the hour is over
        session.get_one(Job, again).deadline_at = session.time()
    assert running.await_end(again, 180.0)["state"] == "expired"
    wait_until(lambda: attempts_of(running, again)[-1]["end"], "the end of its attempt")
    last = attempts_of(running, again)[-1]
    assert last["end"] == "time_limit"
    with database.read() as session:
        assert attempts.checkpoints(session, again)[0].step == last["last_step"]
