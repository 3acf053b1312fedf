"""Rows of different shapes never share a batch, for any lengths and budget; each call of the model is progress."""

from __future__ import annotations

from collections.abc import Iterator

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
    batches = list(InferenceEngine(ScriptedModel(), torch.device("cpu"), Budget(24, 10, 64)).batches(encoded))
    assert all(len({one.shape for one in batch}) == 1 for batch in batches)
    assert sorted(one.row.row_index for batch in batches for one in batch) == list(range(len(rows)))


def test_a_full_batch_of_one_shape_does_not_wait_for_the_rest_of_its_chunk() -> None:
    taken: list[int] = []

    def rows() -> Iterator[Encoded]:
        for index in range(40):
            taken.append(index)
            yield Encoded(Row(index, None, {"text": "x"}), 4, "x", shape=index % 2)

    batches = InferenceEngine(ScriptedModel(), torch.device("cpu"), Budget(24, 10, 64)).batches(rows())
    first = next(batches)
    assert [one.row.row_index for one in first] == [0, 2, 4, 6, 8, 10]
    assert taken == list(range(11))
    assert sum(len(batch) for batch in batches) == 34


def test_sounds_of_similar_duration_share_a_batch() -> None:
    durations = [3.0, 9.0, 1.0, 8.0, 2.0, 1.0]
    rows = [Encoded(Row(index, None, {}), 8, "x", seconds=seconds) for index, seconds in enumerate(durations)]
    batches = InferenceEngine(ScriptedModel(), torch.device("cpu"), Budget(16, 10, 64)).batches(rows)
    assert [[one.row.row_index for one in batch] for batch in batches] == [[1, 3], [0, 4], [2, 5]]


def test_rows_that_are_held_back_are_computed_before_they_fill_the_memory() -> None:
    rows = [Encoded(Row(index, None, {"text": "x"}), 1, "x", shape=index, num_bytes=2**26) for index in range(12)]
    engine = InferenceEngine(ScriptedModel(), torch.device("cpu"), Budget(24, 10, 64))
    most_held = 0
    num_taken = num_batched = 0

    def taken() -> Iterator[Encoded]:
        nonlocal num_taken
        for one in rows:
            num_taken += 1
            yield one

    for batch in engine.batches(taken()):
        num_batched += len(batch)
        most_held = max(most_held, num_taken - num_batched)
    assert num_batched == 12
    assert most_held <= 5


class Generating(ScriptedModel):
    """Calls its model once for each letter, as a model that generates does for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Identity()

    def forward(self, collated: list[str]) -> list[str]:
        for letter in collated[0]:
            self.model(letter)
        return super().forward(collated)


def test_each_token_of_a_model_that_generates_is_progress() -> None:
    """Otherwise a long recording would count as a stall."""
    model = Generating()
    engine = InferenceEngine(model, torch.device("cpu"), Budget(24, 10, 64))
    beats: list[None] = []
    (piece,) = engine.compute([[Encoded(Row(0, None, {}), 1, "eight ch")]], [None], lambda: beats.append(None))
    assert piece.outputs == ["hc thgie"]
    assert len(beats) == 1 + 8
    model.model("later")
    assert len(beats) == 9
