"""The main promise: any process may be killed while a job runs, and every row has exactly one result, the right one."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.config.settings import Settings
from tests.conftest import wait_until
from tests.support import tiny
from tests.support.process_killer import ProcessKiller, assert_invariants, num_chunks_done
from tests.support.rows import embedding_spec, varied_rows, write_rows
from tests.support.stack import QUICK, bare_stack, stack

KILLED_ROLES = ("celery", "runner", "scheduler", "redis")
MOST_DISTURBED_JOBS = 10


@pytest.mark.parametrize(
    ("kind", "num_rows"),
    [
        ("sqlite", 5_000),
        pytest.param("sqlite", 20_000, marks=pytest.mark.soak),
        pytest.param("postgresql", 20_000, marks=pytest.mark.soak),
    ],
)
def test_every_row_survives_a_kill_every_two_seconds(
    kind: str, num_rows: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment = dict(QUICK)
    if kind == "postgresql":
        environment["STOKER_DATABASE_URL"] = request.getfixturevalue("postgres_url")
    rows, model = tmp_path / "rows.jsonl", tiny.tiny_encoder(tmp_path / "model")
    write_rows(rows, varied_rows(num_rows))
    with stack(tmp_path / "data", slots=2, **environment) as running:
        calm = running.submit(embedding_spec(model, rows))
        assert running.await_end(calm, 400.0)["state"] == "completed"
        expected = running.results(calm)

        url = environment.get("STOKER_DATABASE_URL") or Settings(data_dir=running.data_dir).resolved_database_url
        seed = random.SystemRandom().randrange(2**32)
        print(f"seed {seed}")
        killer = ProcessKiller(running, seed, lambda: num_chunks_done(url), roles=KILLED_ROLES)
        killer.start()
        try:
            disturbed: list[dict[str, Any]] = []
            # A fast machine completes a job before every role was killed; on a slow one all are killed during one job.
            while len(disturbed) < MOST_DISTURBED_JOBS and len(set(killer.kills)) < len(KILLED_ROLES):
                disturbed.append(running.await_end(running.submit(embedding_spec(model, rows)), 600.0))
        finally:
            killer.stopped.set()
            killer.join()
        print(f"{len(killer.kills)} kills: {killer.kills}")
        assert len(set(killer.kills)) == len(KILLED_ROLES), "the jobs were too short for every fault"
        assert [result["row_index"] for result in expected] == list(range(num_rows))
        assert [result["key"] for result in expected] == [f"r{row}" for row in range(num_rows)]
        for job in disturbed:
            assert job["state"] == "completed", job
            assert job["counts"] == {"total": num_rows, "done": num_rows, "failed": 0}
            assert running.results(job["id"]) == expected, "one result for each row, equal to the last bit"
            assert_invariants(url, job["id"], num_rows)


@pytest.mark.slow
def test_many_small_jobs_survive_kills(tmp_path: Path) -> None:
    """A slot goes from one small job to the next by itself, and may be killed at any moment of that."""
    rows, model = tmp_path / "rows.jsonl", tiny.tiny_encoder(tmp_path / "model")
    write_rows(rows, varied_rows(40))
    with stack(tmp_path / "data", slots=2, **QUICK) as running:
        calm = running.submit(embedding_spec(model, rows))
        assert running.await_end(calm, 400.0)["state"] == "completed"
        expected = running.results(calm)
        url = Settings(data_dir=running.data_dir).resolved_database_url
        killer = ProcessKiller(
            running,
            random.SystemRandom().randrange(2**32),
            lambda: num_chunks_done(url),
            roles=("celery", "runner", "scheduler"),
            is_enough=lambda kills: len(set(kills)) == 3,
        )
        job_ids: list[str] = []
        killer.start()
        try:
            while len(job_ids) < 20 or (killer.is_alive() and len(job_ids) < 60):
                job_ids.append(running.submit(embedding_spec(model, rows)))
            killer.join()
        finally:
            killer.stopped.set()
            killer.join()
        for job_id in job_ids:
            job = running.await_end(job_id, 600.0)
            assert (job["state"], job["counts"]) == ("completed", {"total": 40, "done": 40, "failed": 0}), job
            assert running.results(job_id) == expected
            assert_invariants(url, job_id, 40)


@pytest.mark.slow
@pytest.mark.soak
def test_sampled_texts_are_the_same_after_kills(tmp_path: Path) -> None:
    rows, model = tmp_path / "rows.jsonl", tiny.tiny_causal_lm(tmp_path / "model")
    write_rows(rows, varied_rows(400))
    spec = {
        "task": "text-generation",
        "model": str(model),
        "input": {"path": str(rows), "key": "id"},
        "parameters": {"temperature": 1.0, "max_new_tokens": 40, "stop": "quick"},
        "batching": {"chunk_rows": 20},
    }
    with stack(tmp_path / "data", slots=2, **QUICK) as running:
        calm = running.submit(spec)
        assert running.await_end(calm, 200.0)["state"] == "completed"
        disturbed = running.submit(spec)
        url = Settings(data_dir=running.data_dir).resolved_database_url
        for role in ("runner", "celery", "runner"):
            before = num_chunks_done(url)
            wait_until(lambda before=before: num_chunks_done(url) > before, "a chunk more", 300.0)
            for victim in running.of_role(role):
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
        job = running.await_end(disturbed, 300.0)
        assert job["counts"] == {"total": 400, "done": 400, "failed": 0}, job
        assert running.results(disturbed) == running.results(calm)


@pytest.mark.soak  # tests/integration/test_embedded.py does it with a stack that works
def test_the_whole_stack_dies_with_stoker_up(tmp_path: Path) -> None:
    with bare_stack(tmp_path / "data", slots=1, **QUICK) as running:
        running.start()
        assert running.of_role("runner")
        running.kill()
        wait_until(lambda: not running.processes(), "every process of the stack is gone")
        running.start()
        assert running.stop() == 0
        assert not running.processes()
