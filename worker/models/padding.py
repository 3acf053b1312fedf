"""How the rows of one batch are padded to one length, and the notices for users if a model does not allow that."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Padding(StrEnum):
    """How rows of a text model may be batched without changing any row's output."""

    RIGHT = "right"  # rows of any lengths, padded after their tokens
    LEFT = "left"  # rows of any lengths, padded before their tokens
    EQUAL_LENGTHS = "equal_lengths"  # rows of the same length only
    ONE_BY_ONE = "one_by_one"  # each row is computed by itself


NOTICES: Mapping[Padding, str] = {
    Padding.EQUAL_LENGTHS: (
        "rows are batched with rows of their own length only: this model's outputs change with padding"
    ),
    Padding.ONE_BY_ONE: "rows are computed one at a time: this model's outputs change with the rows beside them",
}
"""The notice for a job whose batches are smaller than they could be."""
