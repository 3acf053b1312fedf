"""Checks that a speech recogniser can write the letters of the texts, and that the sounds are long enough."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from datasets import Dataset

from jobs.errors import InvalidInput
from worker.training.tasks.data import InputRows
from worker.training.tasks.setup import TaskContext
from worker.training.tasks.vocabulary import unknown_share

logger = logging.getLogger(__name__)

_MOST_UNKNOWN = 0.5
"""The largest share of unknown letters that a training accepts."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """A tokenizer of letters, together with the model's head."""

    context: TaskContext
    tokenizer: Any
    num_letters: int
    """Number of letters of the model's head."""
    layers: tuple[tuple[int, int], ...]
    """Kernel and stride of each convolution over the samples; empty if the model's input is not samples."""

    @classmethod
    def of(cls, context: TaskContext, model: Any, tokenizer: Any) -> Alphabet:
        """Make the alphabet of a model and its tokenizer."""
        config = model.config
        kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
        layers = () if kernels is None or strides is None else tuple(zip(kernels, strides, strict=True))
        return cls(context, tokenizer, int(config.vocab_size), layers)

    def check_row(self, rows: InputRows, row_index: int, num_samples: int, ids: Sequence[int | None]) -> None:
        """Refuse a row that cannot be trained on.

        Raises:
            InvalidInput: The text has no letters or an unknown one without a token, or the sound is too short.
            InvalidModel: The model's head has no output for a letter.
        """
        if not ids:
            raise rows.invalid(row_index, "its text has no letters")
        if None in ids:
            raise rows.invalid(
                row_index, "its text has a letter that is not in the tokenizer's vocabulary, which has no unk_token"
            )
        largest = max(one for one in ids if one is not None)
        if largest >= self.num_letters:
            letter = self.tokenizer.convert_ids_to_tokens(largest)
            raise self.context.invalid(
                f"has {self.num_letters} letters in its head, but its tokenizer uses {letter!r} (id {largest}) in "
                f"{rows.param}, row {row_index}: use the tokenizer that belongs to the model"
            )
        if self.layers and self.num_frames(num_samples) < 1:
            raise rows.invalid(row_index, f"its sound of {num_samples} samples is too short for the model")

    def num_frames(self, num_samples: int) -> int:
        """Return the most letters that the model can write for a sound of `num_samples` samples."""
        frames = num_samples
        for kernel, stride in self.layers:
            frames = (frames - kernel) // stride + 1 if frames >= kernel else 0
        return frames

    def is_longer_than(self, ids: Sequence[int], num_samples: int) -> bool:
        """Return whether a text has more letters than its sound has frames, so that the two cannot be aligned.

        Two equal letters in a row need a frame between them.
        """
        num_needed = len(ids) + sum(one == other for one, other in pairwise(ids))
        return bool(self.layers) and num_needed > self.num_frames(num_samples)

    def check_letters(self, rows: InputRows, dataset: Dataset) -> None:
        """Refuse texts if most of their letters are unknown; log the share of unknown letters otherwise.

        Raises:
            InvalidInput: More than half of the letters are not in the tokenizer's vocabulary.
        """
        delimiter = getattr(self.tokenizer, "word_delimiter_token_id", None)
        share = unknown_share(dataset, "labels", self.tokenizer, without=[] if delimiter is None else [delimiter])
        if share > _MOST_UNKNOWN:
            raise InvalidInput(
                f"{rows.param}: {100 * share:.0f}% of the letters of its texts are not in the tokenizer's vocabulary"
                f"{self._advice()}",
                param=rows.param,
            )
        if share > 0:
            logger.warning(
                "%s: %.1f%% of the letters of its texts are not in the tokenizer's vocabulary, and are replaced by %r",
                rows.param, 100 * share, self.tokenizer.unk_token,
            )  # fmt: skip

    def warn_of_long_texts(self, rows: InputRows, dataset: Dataset) -> None:
        """Log how many rows have texts that are too long for their sounds, so that they teach nothing."""
        if not self.layers:
            return
        columns = dataset.data
        num_long = 0
        for labels, samples in zip(columns.column("labels"), columns.column("samples"), strict=True):
            num_long += self.is_longer_than(labels.as_py(), len(samples))
        if num_long:
            logger.warning(
                "%s: %d of %d rows have no effect: their texts have more letters than their sounds have frames",
                rows.param, num_long, len(dataset),
            )  # fmt: skip

    def _advice(self) -> str:
        letters = [token for token in self.tokenizer.get_vocab() if len(token) == 1 and token.isalpha()]
        if letters and all(letter.isupper() for letter in letters):
            return ", which has only upper-case letters; write the texts in upper case"
        if letters and all(letter.islower() for letter in letters):
            return ", which has only lower-case letters; write the texts in lower case"
        return f", which has {len(letters)} letters: {''.join(sorted(letters)[:60])}"
