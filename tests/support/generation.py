"""Compute rows that have their own parameters with a text generation task, as the engine does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.data.rows import Row
from jobs.specs.inference import InferenceSpec, parse_spec
from tests.support.tiny import SENTENCES
from worker.models.task_model import ComputationStopped, Counted


def rows_of(*cells: tuple[Any, Mapping[str, Any] | str | None]) -> list[Row]:
    """Rows from pairs of a text and the row's own parameters."""
    return [Row(index, None, {"text": text, "parameters": own}) for index, (text, own) in enumerate(cells)]


def generated(task_model: Any, rows: Sequence[Row], *, max_rows: int = 4, max_tokens: int = 10_000) -> list[Any]:
    """One output or RowError for each row, computed a few rows at a time, as the engine does."""
    encoded = task_model.encode(rows)
    good = [one for one in encoded if one.error is None]
    with torch.inference_mode():
        computed = task_model.forward_in_flight(
            task_model.collate(good), max_tokens=max_tokens, max_rows=max_rows, between=lambda: None
        )
    decoded = iter(task_model.decode(good, computed))
    results = [one.error or next(decoded) for one in encoded]
    return [result.output if isinstance(result, Counted) else result for result in results]


def spec_of(model: Path, parameters: Mapping[str, Any] | None = None, **fields: Any) -> InferenceSpec:
    document = {"task": "text-generation", "model": str(model), "input": {"path": "rows.jsonl"}, **fields}
    spec = parse_spec({**document, "parameters": dict(parameters or {})})
    assert isinstance(spec, InferenceSpec)
    return spec


def leave_between_two_steps(task: Any) -> None:
    """Start two rows and stop their computation after three steps."""
    encoded = task.encode(rows_of((SENTENCES[0], None), (SENTENCES[1], None)))
    steps = iter(range(3))

    def between() -> None:
        if next(steps, None) is None:
            raise ComputationStopped

    with pytest.raises(ComputationStopped):
        task.forward_in_flight(task.collate(encoded), max_tokens=1000, max_rows=8, between=between)
