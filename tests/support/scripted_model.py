"""A task model whose steps a test can observe, block or fail; its output is the reversed text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.data.rows import Row, RowError
from worker.models.task_model import Encoded


class ScriptedModel:
    """A model with one token per word. A test sets hooks that are called inside the steps and may raise there."""

    memory_bytes = 1000

    def __init__(self) -> None:
        self.on_encode: Callable[[Sequence[Row]], None] = lambda rows: None
        self.on_collate: Callable[[list[str]], None] = lambda texts: None
        self.on_forward: Callable[[list[str]], None] = lambda texts: None
        self.on_decode: Callable[[list[str]], None] = lambda texts: None
        self.batches: list[list[str]] = []
        """Every batch for which a forward pass was started."""
        self.threads: set[str] = set()
        """Names of the threads that called `encode`."""

    def with_parameters(self, parameters: Mapping[str, Any]) -> ScriptedModel:
        return self

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        self.threads.add(threading.current_thread().name)
        self.on_encode(rows)
        return [self._encode(row) for row in rows]

    def _encode(self, row: Row) -> Encoded:
        if row.values["text"] == "too strange":
            return Encoded(row, 0, None, RowError("strange", "this row is too strange"))
        return Encoded(row, len(row.values["text"].split()), row.values["text"])

    def collate(self, batch: Sequence[Encoded]) -> list[str]:
        texts = [one.features for one in batch]
        self.on_collate(texts)
        return texts

    def forward(self, collated: list[str]) -> list[str]:
        self.batches.append(list(collated))
        self.on_forward(collated)
        return [text[::-1] for text in collated]

    def decode(self, batch: Sequence[Encoded], outputs: list[str]) -> list[Any]:
        self.on_decode([one.features for one in batch])
        assert [one.features[::-1] for one in batch] == outputs
        return list(outputs)
