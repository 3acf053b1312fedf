"""Checks before the first step that a tokenizer fits the model and the texts of a training."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow
import pyarrow.compute
from datasets import Dataset

from jobs.errors import InvalidInput
from worker.models.texts.limits import num_token_ids
from worker.training.tasks.data import InputRows
from worker.training.tasks.setup import TaskContext

logger = logging.getLogger(__name__)

_MANY_UNKNOWN = 0.2
"""The share of unknown tokens from which a warning is logged."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer, together with the model that is trained on its tokens."""

    context: TaskContext
    tokenizer: Any
    num_ids: int | None
    """Number of tokens in the model's embedding table; None if it has no such table."""

    @classmethod
    def of(cls, context: TaskContext, model: Any, tokenizer: Any) -> Vocabulary:
        """Make the vocabulary of a model and its tokenizer.

        It reads with a copy, since a call leaves its truncation and padding in a tokenizer, which would be saved with
        them beside the trained model.
        """
        return cls(context, copy.deepcopy(tokenizer), num_token_ids(model))

    def check_row(self, rows: InputRows, row_index: int, ids: Sequence[int]) -> None:
        """Refuse a row that the model cannot read.

        Raises:
            InvalidInput: The row has no tokens.
            InvalidModel: The model has no embedding for a token, which on a GPU would fail without a clear error.
        """
        if not ids:
            raise rows.invalid(row_index, "its text has no tokens")
        if self.num_ids is not None and max(ids) >= self.num_ids:
            place = f"{rows.param}, row {row_index}"
            raise self._too_small(next(one for one in ids if one >= self.num_ids), place)

    def check_padding(self) -> None:
        """Refuse a tokenizer that cannot pad rows to equal length.

        Raises:
            InvalidModel: The tokenizer has no padding token, or the model has no embedding for it.
        """
        pad = self.tokenizer.pad_token_id
        if pad is None:
            raise self.context.invalid(
                "has a tokenizer without a pad_token, which is needed to pad the rows of a batch"
            )
        if self.num_ids is not None and pad >= self.num_ids:
            raise self._too_small(pad, "padding")

    def check_room(self, longest: int | None) -> None:
        """Refuse a length that leaves no room for a text.

        Raises:
            InvalidInput: The tokenizer's special tokens fill the whole length.
        """
        num_special = self.tokenizer.num_special_tokens_to_add(pair=False)
        if longest is not None and longest <= num_special:
            raise InvalidInput(
                f"data.max_length: {longest} leaves no room for a text beside a row's {num_special} special tokens",
                param="data.max_length",
            )

    def _too_small(self, token_id: int, place: str) -> Exception:
        token = self.tokenizer.convert_ids_to_tokens(token_id)
        return self.context.invalid(
            f"has embeddings for {self.num_ids} tokens, but its tokenizer uses {token!r} (id {token_id}) for {place}; "
            f"resize the model's embeddings to its tokenizer's {len(self.tokenizer)} tokens (resize_token_embeddings)"
        )

    def warn_of_unknown(self, rows: InputRows, dataset: Dataset, column: str = "input_ids") -> None:
        """Log a warning if many tokens are the tokenizer's unknown token."""
        share = unknown_share(dataset, column, self.tokenizer)
        if share >= _MANY_UNKNOWN:
            logger.warning(
                "%s: %.0f%% of the tokens are %r: the tokenizer does not support the script of the texts",
                rows.param, 100 * share, self.tokenizer.unk_token,
            )  # fmt: skip


def unknown_share(dataset: Dataset, column: str, tokenizer: Any, *, without: Sequence[int] = ()) -> float:
    """Return the share of a column's token ids that are the tokenizer's unknown token.

    Args:
        dataset: Prepared rows.
        column: A column of lists of ids.
        tokenizer: The tokenizer that made the ids.
        without: Ids that are not counted.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return 0.0
    num_unknown, num_all = 0, 0
    for chunk in dataset.data.column(column).chunks:
        ids = pyarrow.compute.list_flatten(chunk)
        skipped = pyarrow.compute.sum(pyarrow.compute.is_in(ids, pyarrow.array(without, ids.type))).as_py() or 0
        num_all += len(ids) - skipped
        num_unknown += pyarrow.compute.sum(pyarrow.compute.equal(ids, unknown)).as_py() or 0
    return num_unknown / num_all if num_all else 0.0
