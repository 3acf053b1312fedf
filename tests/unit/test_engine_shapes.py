"""Rows of different shapes never share a batch, whatever the lengths and the budget."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.data.rows import Row
from tests.support.scripted_model import ScriptedModel
from worker.inference.budget import Budget
from worker.inference.engine import InferenceEngine
from worker.models.task_model import Encoded


@given(st.lists(st.tuples(st.integers(1, 20), st.sampled_from([None, "wide", (3, 224)])), min_size=1, max_size=60))
def test_a_batch_holds_rows_of_one_shape_and_no_row_is_lost(rows: list[tuple[int, object]]) -> None:
    encoded = [
        Encoded(Row(index, None, {"text": "x"}), num_tokens, "x", shape=shape)
        for index, (num_tokens, shape) in enumerate(rows)
    ]
    batches = InferenceEngine(ScriptedModel(), torch.device("cpu"), Budget(24, 10, 64)).batches(encoded)
    assert all(len({one.shape for one in batch}) == 1 for batch in batches)
    assert sorted(one.row.row_index for batch in batches for one in batch) == list(range(len(rows)))
