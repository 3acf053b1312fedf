"""How the rows of one batch are brought to one length, where a model bears that, and what users are told where not."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Padding(StrEnum):
    """What may be put beside a row of a text model without changing the row's output."""

    RIGHT = "right"  # rows of any lengths, the shorter ones filled up behind their tokens
    LEFT = "left"  # rows of any lengths, the shorter ones filled up before their tokens
    EQUAL_LENGTHS = "equal_lengths"  # rows of the same length only
    ONE_BY_ONE = "one_by_one"  # nothing: each row is computed by itself


NOTICES: Mapping[Padding, str] = {
    Padding.EQUAL_LENGTHS: (
        "rows are batched with rows of their own length only: this model's outputs change with padding"
    ),
    Padding.ONE_BY_ONE: "rows are computed one at a time: this model's outputs change with the rows beside them",
}
"""What a job is told where its batches are smaller than they could be."""
