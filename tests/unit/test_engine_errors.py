"""After an out-of-memory, the budget of batches becomes smaller only if their size was the cause."""

from __future__ import annotations

import torch

from jobs.data.rows import Row, RowErrorCode
from tests.support.scripted_model import ScriptedModel
from worker.inference.budget import Budget
from worker.inference.engine import InferenceEngine

ROWS = [Row(index, None, {"text": f"row {index}"}) for index in range(8)]


def test_a_failing_row_does_not_shrink_batches_that_fit_once_room_was_made() -> None:
    model, budget = ScriptedModel(), Budget(24, 10, 64)
    has_room = False

    def forward(texts: list[str]) -> None:
        if not has_room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if "row 5" in texts:
            raise ValueError("this row is strange")

    def make_room() -> bool:
        nonlocal has_room
        has_room = True
        return True

    model.on_forward = forward
    engine = InferenceEngine(model, torch.device("cpu"), budget, make_room)
    [batch] = engine.batches(engine.encode(ROWS))
    pieces = engine.compute([batch], [None], lambda: None)
    assert sorted(one.row.row_index for piece in pieces for one in piece.members) == list(range(8))
    [(failed, error)] = [(piece.members, piece.error) for piece in pieces if piece.error is not None]
    assert [one.row.row_index for one in failed] == [5]
    assert error is not None
    assert error.code == RowErrorCode.ROW_FAILED
    assert budget.max_tokens == 24
