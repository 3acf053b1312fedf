"""The order of rows in an epoch. It depends only on the seed and the number of the epoch.

An attempt that resumes in the middle of an epoch must find the same order. transformers' own sampler by length uses the
global generator, whose state has changed by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_MOST_BATCHES_SORTED = 50


class EpochSampler(Sampler[int]):
    """Shuffles the rows anew for each epoch; can keep rows of similar length together."""

    def __init__(self, num_rows: int, *, seed: int, lengths: Sequence[int] | None = None, batch_rows: int = 1) -> None:
        """
        Args:
            num_rows: Number of rows of the data set.
            seed: Seed of the order.
            lengths: The length of each row, if rows of similar length should share a step.
            batch_rows: Number of rows of one step.
        """
        self._num_rows, self._seed, self._lengths, self._batch_rows = num_rows, seed, lengths, batch_rows
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order the next iteration returns."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._num_rows, generator=generator).tolist()
        return iter(order if self._lengths is None else self._by_length(order, self._lengths))

    def _by_length(self, order: list[int], lengths: Sequence[int]) -> list[int]:
        """Sort rows by length within stretches of up to 50 steps, longest first. The order stays random beyond that."""
        num_batches = max(1, min(self._num_rows // (4 * self._batch_rows), _MOST_BATCHES_SORTED))
        stretch = num_batches * self._batch_rows
        return [
            row
            for first in range(0, len(order), stretch)
            for row in sorted(order[first : first + stretch], key=lengths.__getitem__, reverse=True)
        ]
