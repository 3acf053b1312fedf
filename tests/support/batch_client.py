"""The unmodified OpenAI SDK, pointed at a running stack: files and batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from openai.types import Batch

from jobs.config.settings import Settings
from tests.conftest import wait_until
from tests.support import tiny
from tests.support.rows import json_lines
from tests.support.stack import Stack

LIVE = ("validating", "in_progress", "finalizing", "cancelling")


TEXTS = [f"{number} {tiny.SENTENCES[number % len(tiny.SENTENCES)]}" for number in range(40)]


@dataclass
class BatchClient:
    """A running stack, models in it, and the SDK pointed at it."""

    stack: Stack
    client: openai.OpenAI
    folder: Path

    def model(self, name: str) -> str:
        """The name of a model in the lines of an input file."""
        return str(self.folder / name)

    def upload(self, lines: list[Any], name: str = "batch.jsonl") -> str:
        """Upload a file of these lines and return its id; a string is written unchanged."""
        return self.client.files.create(file=(name, json_lines(lines).encode()), purpose="batch").id

    def create(self, file_id: str, endpoint: str = "/v1/embeddings", **extra: Any) -> Batch:
        """Create a batch from an uploaded file."""
        endpoint_asked: Any = endpoint
        return self.client.batches.create(
            input_file_id=file_id, endpoint=endpoint_asked, completion_window="24h", **extra
        )

    def ended(self, batch: Batch, seconds: float = 120.0) -> Batch:
        """Wait until the batch has ended, and return it."""
        seen = [batch]

        def is_over() -> bool:
            seen.append(self.client.batches.retrieve(batch.id))
            return seen[-1].status not in LIVE

        wait_until(is_over, "the batch ends", seconds)
        return seen[-1]

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of an output or error file."""
        assert file_id is not None
        return [json.loads(line) for line in self.client.files.content(file_id).text.splitlines()]


def line(custom_id: str, url: str, **body: Any) -> dict[str, Any]:
    """One line of an input file."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def embedding_lines(sdk: BatchClient, model: str = "encoder") -> list[dict[str, Any]]:
    """One line of an input file for each text."""
    return [
        line(f"t{number}", "/v1/embeddings", model=sdk.model(model), input=text) for number, text in enumerate(TEXTS)
    ]


@contextmanager
def batch_client(running: Stack, folder: Path) -> Iterator[BatchClient]:
    """The SDK pointed at a running stack; it validates responses strictly."""
    key = Settings(data_dir=running.data_dir).local_key_path.read_text().strip()
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, _strict_response_validation=True) as client:
        yield BatchClient(running, client, folder)
