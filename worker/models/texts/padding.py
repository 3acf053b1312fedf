"""How the rows of one batch are padded to one length, and the notices for users if a model does not allow that.

Shapes: B windows of a batch, T tokens of its longest window, X the model's output for each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import torch


class Padding(StrEnum):
    """How rows of a text model may be batched without changing any row's output."""

    RIGHT = "right"  # rows of any lengths, padded after their tokens
    LEFT = "left"  # rows of any lengths, padded before their tokens
    PACKED = "packed"  # rows of any lengths, computed without padding
    EQUAL_LENGTHS = "equal_lengths"  # rows of the same length only
    ONE_BY_ONE = "one_by_one"  # each row is computed by itself


ANY_LENGTHS = frozenset({Padding.RIGHT, Padding.LEFT, Padding.PACKED})
"""The ways in which rows of any lengths may share a batch."""
NOTICES: Mapping[Padding, str] = {
    Padding.EQUAL_LENGTHS: (
        "rows are batched only with rows of the same length, because padding changes this model's outputs"
    ),
    Padding.ONE_BY_ONE: "rows are computed one at a time, because other rows in a batch change this model's outputs",
}
"""The notice for a job whose batches are smaller than they could be."""


def behind_tokens(outputs_BTX: torch.Tensor, mask_BT: torch.Tensor, side: Padding) -> torch.Tensor:
    """Move the outputs for each token, (B, T, X), so that those of padding come last in each row."""
    if side != Padding.LEFT:
        return outputs_BTX
    num_columns = mask_BT.shape[1]
    padding_B1 = num_columns - mask_BT.sum(dim=1, keepdim=True)
    columns_BT = (torch.arange(num_columns, device=mask_BT.device) + padding_B1) % num_columns
    return outputs_BTX.gather(1, columns_BT.unsqueeze(-1).expand(-1, -1, outputs_BTX.shape[-1]))
