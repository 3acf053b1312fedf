"""Trainings under the daemon: killed at random steps, they come to the very losses and weights of a calm run."""

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
from tests.support.rows import LABELLED, labelled_rows, write_rows
from tests.support.stack import QUICK, Stack, stack
from tests.support.training_progress import attempts_of, await_attempt, await_step, losses

pytestmark = pytest.mark.slow

NUM_STEPS = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def spec(folder: Path) -> dict[str, Any]:
    """A training of a tiny encoder with dropout, a checkpoint each ten steps."""
    return {
        "kind": "training",
        "task": "text-classification",
        "model": str(tiny.tiny_encoder(folder / "encoder")),
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


def longer(spec: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """The same training, of more steps."""
    return {**spec, "arguments": {**spec["arguments"], "max_steps": num_steps}}


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Stack]:
    """One slot."""
    with stack(folder / "data", slots=1, **QUICK) as running:
        yield running


@pytest.fixture(scope="module")
def chain(running: Stack, spec: dict[str, Any]) -> tuple[str, str]:
    """A training that was left alone, and an inference by its model, submitted at once; both have ended."""
    trained = running.submit(spec)
    rows = {"path": spec["data"]["eval"], "columns": {"text": "text"}}
    answers = running.submit({"task": "text-classification", "model": f"job:{trained}", "input": rows})
    for job_id in (trained, answers):
        assert running.await_end(job_id, 360.0)["state"] == "completed"
    return trained, answers


@pytest.fixture(scope="module")
def calm(chain: tuple[str, str]) -> str:
    """Id of the training that was left alone."""
    return chain[0]


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


def test_an_inference_waits_for_the_training_whose_model_it_names(running: Stack, chain: tuple[str, str]) -> None:
    calm, answers = chain
    labels = {result["output"][0]["label"] for result in running.results(answers)}
    assert labels <= set(LABELLED)
    with running.client() as client:
        assert client.job(calm)["ended_at"] <= client.job(answers)["started_at"]
        names = {artifact["name"] for artifact in client.artifacts(calm)}
    assert {"model/config.json", "model/README.md", "summary.json", "metrics.jsonl", "loss.png"} <= names
    store = Store(Settings(data_dir=running.data_dir).resolved_store_url)
    assert len({key.split("/")[3] for key in store.list(f"jobs/{calm}/checkpoints/")}) <= 2


def test_an_interrupted_training_comes_to_the_same_losses_and_weights(
    running: Stack, spec: dict[str, Any], calm: str, database: Database
) -> None:
    chosen = random.Random(11)
    shot = running.submit(spec)

    await_step(running, shot, chosen.randint(11, 18))
    await_checkpoint(shot, database)  # it is copied beside the training
    kill(running, "trainer")

    await_attempt(running, shot, 2)
    with between_checkpoints(running):
        damaged = damage_newest_checkpoint(shot, database)
        kill(running, "runner")
    kill(running, "scheduler")
    with redis.Redis(unix_socket_path=str(Settings(data_dir=running.data_dir).redis_socket)) as client:
        client.flushall()

    await_attempt(running, shot, 3)
    kill(running, "celery")

    await_attempt(running, shot, 4)
    assert running.stop() == 0
    running.start()

    job = running.await_end(shot, 600.0)
    assert (job["state"], job["counts"]) == ("completed", {"total": NUM_STEPS, "done": NUM_STEPS, "failed": 0})
    assert losses(running, shot) == losses(running, calm)
    assert [step for step, _ in losses(running, shot)] == list(range(1, NUM_STEPS + 1))
    assert weights(running, shot) == weights(running, calm)
    tries = attempts_of(running, shot)
    assert [one["end"] for one in tries] == ["machine", "machine", "lost", "shutdown", "completed"], tries
    assert all(one["resumed_step"] % 10 == 0 for one in tries[:4])
    assert tries[1]["resumed_step"] >= 10
    assert tries[2]["resumed_step"] < damaged, "a checkpoint that is not what was written is passed over"
    assert tries[4]["resumed_step"] == tries[3]["last_step"], "it was stopped with a checkpoint of its last step"
    with running.client() as client:
        names = [event["name"] for event in client.events(shot, follow=False)]
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
    """While inside, the one training's process is frozen, and none of its checkpoints is on its way to the store."""
    folder = Settings(data_dir=running.data_dir).training_path
    (held,) = running.of_role("trainer")
    with ExitStack() as stack:

        def is_frozen_between() -> bool:
            """Each checkpoint's folder is there from before it is told of until it is kept. One that stays may not have
            been told of yet, so the process must go on a little."""
            with ExitStack() as trying:
                trying.enter_context(frozen(held.pid))
                if list(folder.glob("*/*/checkpoint-*")) or list(folder.glob("*/*/saving/checkpoint-*")):
                    return False
                stack.enter_context(trying.pop_all())
            return True

        wait_until(is_frozen_between, "a moment between two checkpoints")
        yield


def damage_newest_checkpoint(job_id: str, database: Database) -> int:
    """Have the newest checkpoint be another than was written; gives its step."""
    with database.write() as session:
        newest = attempts.checkpoints(session, job_id)[0]
        newest.files = [{**file, "sha256": "0" * 64} for file in newest.files]
        return newest.step


def test_a_cancelled_training_leaves_no_process_and_a_retry_goes_on(
    running: Stack, spec: dict[str, Any], database: Database
) -> None:
    job_id = running.submit({**longer(spec, 100_000), "time_limit": "1h"})
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
