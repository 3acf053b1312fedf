"""In which order an epoch takes the rows: it follows from the seed and the epoch's number, and from nothing else.

An attempt that goes on in the middle of an epoch must find the same order. transformers' own sampler by length draws
from the global generator, which stands elsewhere by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_MOST_BATCHES_SORTED = 50


class EpochSampler(Sampler[int]):
    """A shuffle for each epoch; rows of like length may be kept together."""

    def __init__(self, num_rows: int, *, seed: int, lengths: Sequence[int] | None = None, batch_rows: int = 1) -> None:
        """
        Args:
            num_rows: of the data.
            seed: of the order.
            lengths: of each row, where rows of like length are to share a step.
            batch_rows: rows of one step.
        """
        self._num_rows, self._seed, self._lengths, self._batch_rows = num_rows, seed, lengths, batch_rows
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._num_rows, generator=generator).tolist()
        return iter(order if self._lengths is None else self._by_length(order, self._lengths))

    def _by_length(self, order: list[int], lengths: Sequence[int]) -> list[int]:
        """Sort stretches of some dozens of steps, longest first, so that chance still says who comes together."""
        num_batches = max(1, min(self._num_rows // (4 * self._batch_rows), _MOST_BATCHES_SORTED))
        stretch = num_batches * self._batch_rows
        return [
            row
            for first in range(0, len(order), stretch)
            for row in sorted(order[first : first + stretch], key=lengths.__getitem__, reverse=True)
        ]
