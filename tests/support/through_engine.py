"""Run rows through the real engine: encode, divide into batches, collate, compute and decode, as in a lease."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.data.rows import Row
from tests.support.task_kit import CPU
from worker.inference.budget import Budget
from worker.inference.engine import InferenceEngine
from worker.inference.tasks import Encoded, TaskModel
from worker.models.batching import auto_max_tokens
from worker.models.task_model import Counted, JoinsEqualParts


@dataclass(frozen=True)
class Computed:
    """The results of rows, and how the rows were batched."""

    outputs: list[Any]
    """Outputs or row errors, in the rows' order."""
    batches: list[list[Encoded]]

    @property
    def is_shared(self) -> bool:
        """Whether several rows were computed at once."""
        return any(len(batch) > 1 for batch in self.batches)

    @property
    def is_mixed(self) -> bool:
        """Whether rows of different lengths were computed at once."""
        return any(len({one.num_tokens for one in batch}) > 1 for batch in self.batches)


def compute(model: TaskModel, rows: Sequence[Row], *, num_threads: int = 2) -> Computed:
    """Compute rows with a model as one chunk, several batches at a time if there are several threads."""
    generates = isinstance(model, JoinsEqualParts) and model.generates
    engine = InferenceEngine(
        model, CPU, Budget(auto_max_tokens(CPU.type, 0, generates=generates), 256, 64), num_threads=num_threads
    )
    found: dict[int, Any] = {}
    encoded = list(engine.encode(rows))
    found.update({one.row.row_index: one.error for one in encoded if one.error is not None})
    batches: list[list[Encoded]] = []
    for together in engine.groups([one for one in encoded if one.error is None]):
        batches += together
        for piece in engine.compute(together, [engine.collate(batch) for batch in together], lambda: None):
            for one, output in zip(piece.members, engine.decode(piece), strict=True):
                found[one.row.row_index] = output.output if isinstance(output, Counted) else output
    engine.close()
    return Computed([found[row.row_index] for row in rows], batches)
