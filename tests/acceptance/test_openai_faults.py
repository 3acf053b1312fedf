"""A batch whose processes are killed while it runs: the same id completes, with one output line for each input line."""

from __future__ import annotations

import contextlib
from pathlib import Path

import openai
import psutil
import pytest

from tests.conftest import wait_until
from tests.support import tiny
from tests.support.batch_client import batch_client, line
from tests.support.stack import QUICK, stack

pytestmark = pytest.mark.slow

NUM_LINES = 10_000


def test_a_batch_survives_kills_of_workers_and_of_the_api(tmp_path: Path) -> None:
    model = str(tiny.tiny_encoder(tmp_path / "encoder"))
    texts = [f"{number} {tiny.SENTENCES[number % len(tiny.SENTENCES)]}" for number in range(NUM_LINES)]
    lines = [line(f"c{number}", "/v1/embeddings", model=model, input=text) for number, text in enumerate(texts)]
    with stack(tmp_path / "data", slots=2, **QUICK) as running, batch_client(running, tmp_path) as sdk:
        made = sdk.create(sdk.upload(lines))
        seen = [made]

        def is_further_than(completed: int) -> bool:
            with contextlib.suppress(openai.APIConnectionError, openai.InternalServerError):
                seen.append(sdk.client.batches.retrieve(made.id))
            counts = seen[-1].request_counts
            return seen[-1].completed_at is not None or (counts is not None and counts.completed > completed)

        for number, role in enumerate(("scheduler", "runner", "celery")):
            counts = seen[-1].request_counts
            before = 0 if number == 0 or counts is None else counts.completed
            if number:
                wait_until(lambda before=before: is_further_than(before), f"progress beyond {before}", 300.0)
            for victim in running.of_role(role)[:1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
        wait_until(lambda: is_further_than(NUM_LINES), "the end", 600.0)
        batch = seen[-1]
        assert (batch.id, batch.status) == (made.id, "completed"), batch
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
        assert [answer["custom_id"] for answer in sdk.lines(batch.output_file_id)] == [
            f"c{n}" for n in range(NUM_LINES)
        ]
