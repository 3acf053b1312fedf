"""How a loop's rows fall into batches, and how batches come to the device."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from transformers import BatchEncoding

from worker.training.loops.data_loading import Layout, first_rows, to_device

Pair = namedtuple("Pair", "left right")
META = torch.device("meta")
"""A device without storage: a tensor that is not on it was not moved."""


def tensors(batch: Any) -> list[torch.Tensor]:
    """All tensors in a batch."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    if isinstance(batch, dict | UserDict):
        return [tensor for value in batch.values() for tensor in tensors(value)]
    return [tensor for value in batch for tensor in tensors(value)] if isinstance(batch, list | tuple) else []


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(2),
        [torch.zeros(2), "kept"],
        (torch.zeros(2), {"deep": [torch.zeros(1)]}),
        Pair(torch.zeros(1), torch.zeros(1)),
        {"x": torch.zeros(2), "name": "kept"},
        BatchEncoding({"input_ids": torch.zeros(2)}),
    ],
    ids=["tensor", "list", "tuple", "named tuple", "dict", "tokenizer's"],
)
def test_every_tensor_of_a_batch_comes_to_the_device(batch: Any) -> None:
    """A collate may give a mapping that is no dict, as tokenizers do."""
    moved = to_device(batch, META)
    assert type(moved) is type(batch)
    assert len(tensors(moved)) == len(tensors(batch)) > 0
    assert all(tensor.device == META for tensor in tensors(moved))
    assert all(tensor.device.type == "cpu" for tensor in tensors(batch)), "what a data set keeps stays where it is"


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_an_epoch_has_each_row_for_any_number_of_ranks(num_ranks: int) -> None:
    layouts = [
        Layout(25, seed=1, micro_batch=2, accumulation=2, drops_last=False, rank=rank, num_ranks=num_ranks)
        for rank in range(num_ranks)
    ]
    seen = [draw for layout in layouts for step in layout.steps(3, 0) for batch in step for draw in batch]
    assert {row for _, row in seen} == set(range(25))
    assert len(seen) - 25 < num_ranks, "only as many come twice as the ranks need for equal shares"
    assert {epoch for epoch, _ in seen} == {3}
    for layout in layouts:
        assert len(layout.steps(3, 0)) == layout.epoch_steps
        assert layout.steps(3, 1) == layout.steps(3, 0)[1:]


def test_the_first_rows_are_cut_from_every_tensor_of_a_batch() -> None:
    ids, labels = torch.arange(12).reshape(4, 3), torch.arange(4)
    cut = first_rows(BatchEncoding({"input_ids": ids, "labels": (labels, [1, 2, 3, 4]), "name": "kept"}), 3)
    assert torch.equal(cut["input_ids"], ids[:3])
    assert torch.equal(cut["labels"][0], labels[:3])
    assert cut["labels"][1] == [1, 2, 3]
    assert cut["name"] == "kept"
