"""Shared support for tests of inference tasks: varied texts, and calls of a task's four methods as in the engine."""

from __future__ import annotations

import base64
import io
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from jobs.config.settings import Settings
from jobs.data.rows import Row, RowError
from jobs.specs.inference import InferenceSpec
from tests.support.tiny import SENTENCES
from worker.inference.padding_verdicts import PadsRows
from worker.inference.tasks import TaskModel, load_task_model
from worker.models.model_ref import ModelRef
from worker.models.task_model import Counted

CPU = torch.device("cpu")
_PNG = "data:image/png;base64,"
_MOST_TIED_PIXELS = 0.002
"""Largest share of pixels that may differ between two equal images."""
LONG_TEXT = " ".join(SENTENCES) * 20
"""A text longer than any tiny model accepts."""
TEXTS = (
    *SENTENCES,
    "",
    " ",
    "x",
    "  two  spaces,\ttabs\nand new lines  ",
    "Zażółć gęślą jaźń; ﬁn 🙂👩‍👩‍👧 e\u0301 \u200b",
    "supercalifragilisticexpialidocious" * 3,
    "Ada Lovelace " * 20,
)


def load(
    task: str,
    model: object,
    parameters: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    settings: Settings | None = None,
) -> TaskModel:
    """Load a task's model as a lease does; by default all local paths are allowed."""
    document = {
        "task": task,
        "model": str(model),
        "input": {"path": "rows.jsonl"},
        "parameters": dict(parameters or {}),
    }
    settings = settings or Settings(input_roots=["/"])
    spec = InferenceSpec.model_validate(document)
    model = load_task_model(ModelRef.of(spec), spec.task_parameters, device=device, dtype=dtype, rules=settings)
    if isinstance(model, PadsRows):
        model.tokens.padding = model.probe_padding()
    return model


def text_rows(texts: Sequence[Any]) -> list[Row]:
    """One row for each text."""
    return [Row(index, None, {"text": text}) for index, text in enumerate(texts)]


def outputs(task_model: TaskModel, rows: Sequence[Row], *, batch_rows: int = 5) -> list[Any]:
    """One output or RowError for each row, in order, computed in batches of rows of similar length."""
    encoded = task_model.encode(rows)
    assert [one.row for one in encoded] == list(rows)
    results: list[Any] = [one.error for one in encoded]
    by_shape: dict[Hashable, list[int]] = {}
    for place in sorted(
        (i for i, one in enumerate(encoded) if one.error is None), key=lambda i: -encoded[i].num_tokens
    ):
        by_shape.setdefault(encoded[place].shape, []).append(place)
    cuts = [
        alike[start : start + batch_rows] for alike in by_shape.values() for start in range(0, len(alike), batch_rows)
    ]
    for places in cuts:
        batch = [encoded[place] for place in places]
        with torch.inference_mode():
            computed = task_model.forward(task_model.collate(batch))
        decoded = task_model.decode(batch, computed)
        for place, output in zip(places, decoded, strict=True):
            results[place] = output.output if isinstance(output, Counted) else output
    return results


def same(actual: Any, expected: Any, *, tolerance: float = 1e-5) -> bool:
    """Whether two outputs have equal structure, names and labels, and numbers that differ by at most the tolerance."""
    if isinstance(expected, dict):
        return (
            isinstance(actual, dict)
            and actual.keys() == expected.keys()
            and all(same(actual[name], expected[name], tolerance=tolerance) for name in expected)
        )
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(actual, list)
            and len(actual) == len(expected)
            and all(same(one, other, tolerance=tolerance) for one, other in zip(actual, expected, strict=True))
        )
    if isinstance(expected, str) and expected.startswith(_PNG):
        return isinstance(actual, str) and actual.startswith(_PNG) and _same_image(actual, expected)
    if isinstance(expected, bool) or not hasattr(expected, "__float__"):
        return bool(actual == expected) and type(actual) is type(expected)
    return type(actual) in (int, float) and abs(actual - float(expected)) <= tolerance


def _same_image(actual: str, expected: str) -> bool:
    """Whether two images differ in few pixels only: those of a mask whose scores tie but for the last bit."""
    first, second = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one.removeprefix(_PNG))))) for one in (actual, expected)
    )
    return first.shape == second.shape and float(np.mean(first != second)) <= _MOST_TIED_PIXELS


def error_codes(results: Sequence[Any]) -> list[str | None]:
    """The code of each row error, None for each output."""
    return [result.code if isinstance(result, RowError) else None for result in results]
