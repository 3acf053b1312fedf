"""A batch whose processes are killed while it runs: the same id completes, one line of output for each of input."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import openai
import psutil
import pytest

from jobs.config.settings import Settings
from tests.conftest import wait_until
from tests.support import tiny
from tests.support.stack import QUICK, stack

pytestmark = pytest.mark.slow

NUM_LINES = 20_000


def write_lines(path: Path, model: Path, num_lines: int) -> None:
    """A batch file of texts, each its own."""
    with path.open("w", encoding="utf-8") as out:
        for number in range(num_lines):
            body = {"model": str(model), "input": f"{number} {tiny.SENTENCES[number % len(tiny.SENTENCES)]}"}
            line = {"custom_id": f"c{number}", "method": "POST", "url": "/v1/embeddings", "body": body}
            out.write(json.dumps(line) + "\n")


def test_a_batch_survives_kills_of_workers_and_of_the_api(tmp_path: Path) -> None:
    model, path = tiny.tiny_encoder(tmp_path / "encoder"), tmp_path / "batch.jsonl"
    write_lines(path, model, NUM_LINES)
    with stack(tmp_path / "data", slots=2, **QUICK) as running:
        key = Settings(data_dir=running.data_dir).local_key_path.read_text().strip()
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, _strict_response_validation=True) as client:
            with path.open("rb") as content:
                file_id = client.files.create(file=content, purpose="batch").id
            made = client.batches.create(input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h")
            seen = [made]

            def look() -> None:
                with contextlib.suppress(openai.APIConnectionError, openai.InternalServerError):
                    seen.append(client.batches.retrieve(made.id))

            def is_further_than(completed: int) -> bool:
                look()
                counts = seen[-1].request_counts
                return seen[-1].completed_at is not None or (counts is not None and counts.completed > completed)

            for number, role in enumerate(("scheduler", "runner", "celery", "scheduler", "runner")):
                counts = seen[-1].request_counts
                before = 0 if number == 0 or counts is None else counts.completed
                if number:
                    wait_until(lambda before=before: is_further_than(before), f"progress beyond {before}", 300.0)
                for victim in running.of_role(role)[:1]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        victim.kill()
            wait_until(lambda: is_further_than(NUM_LINES), "the end", 600.0, pause_seconds=0.1)
            batch = seen[-1]
            assert (batch.id, batch.status) == (made.id, "completed"), batch
            assert batch.request_counts is not None
            assert batch.request_counts.model_dump() == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
            answers = [json.loads(line) for line in client.files.content(batch.output_file_id or "").text.splitlines()]
            assert [answer["custom_id"] for answer in answers] == [f"c{number}" for number in range(NUM_LINES)]
