"""The batches of a loop: which rows each rank takes at each step, and loaders that draw a row the same way always."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from worker.training.loops import rng
from worker.training.loops.row_order import EpochSampler
from worker.training.modules.user_module import Batch, Rows

Draw = tuple[int, int]
"""(epoch, row): what a row draws from the generators follows from it and the seed."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a training's rows fall into steps."""

    num_rows: int
    seed: int
    micro_batch: int
    """Rows of one batch on one rank."""
    accumulation: int
    """Batches of one step on one rank."""
    drops_last: bool
    rank: int
    num_ranks: int

    @property
    def epoch_batches(self) -> int:
        """Batches of one rank in an epoch. All ranks have as many."""
        batches = self.num_rows / (self.micro_batch * self.num_ranks)
        return math.floor(batches) if self.drops_last else math.ceil(batches)

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch; its last one may have fewer batches."""
        return math.ceil(self.epoch_batches / self.accumulation)

    @property
    def step_rows(self) -> int:
        """Rows of one step, over all ranks."""
        return self.micro_batch * self.accumulation * self.num_ranks

    def steps(self, epoch: int, first_step: int) -> list[list[list[Draw]]]:
        """This rank's rows of an epoch's steps.

        Args:
            epoch: from 0.
            first_step: of the epoch, from 0; the ones before it are left out.

        Returns:
            For each step its batches, for each batch its draws.
        """
        sampler = EpochSampler(self.num_rows, seed=self.seed)
        sampler.set_epoch(epoch)
        order = list(sampler)
        if self.num_ranks > 1 and not self.drops_last:
            # Every rank computes as many gradients of as many rows: what the last ones lack is taken from the front.
            order += (order * self.num_ranks)[: -len(order) % self.num_ranks]
        whole = self.micro_batch * self.num_ranks
        batches = []
        for number in range(self.epoch_batches):
            rows = order[number * whole : (number + 1) * whole]
            share = len(rows) // self.num_ranks
            batches.append([(epoch, row) for row in rows[self.rank * share : (self.rank + 1) * share]])
        cut = range(first_step * self.accumulation, len(batches), self.accumulation)
        return [batches[first : first + self.accumulation] for first in cut]


class _Drawn(Dataset[Any]):
    """Rows by draw, each made with generators that are seeded by it."""

    def __init__(self, rows: Rows, seed: int) -> None:
        self._rows, self._seed = rows, seed

    def __getitem__(self, draw: Draw) -> Any:
        if get_worker_info() is not None:  # this process draws nothing else
            rng.seed_host(self._seed, *draw)
            try:
                return self._rows[draw[1]]
            except SystemExit as error:  # the loader would see a process that is gone, and no fault of the module's
                raise RuntimeError(f"a row ends its process: SystemExit: {error}") from error
        with rng.host_kept():
            rng.seed_host(self._seed, *draw)
            return self._rows[draw[1]]


def load(
    rows: Rows,
    batches: Sequence[Sequence[Draw]],
    *,
    collate: Callable[[list[Any]], Batch],
    seed: int,
    num_workers: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Batches in order, on the device.

    Args:
        rows: a data set.
        batches: the draws of each.
        collate: makes a batch of rows.
        seed: of what a row draws.
        num_workers: processes that load ahead; 0: none.
        device: where the batches go.
    """
    loader: DataLoader[Any] = DataLoader(
        _Drawn(rows, seed),
        batch_sampler=[list(batch) for batch in batches],
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global one is the training's
    )
    return (to_device(batch, device) for batch in loader)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """All tensors in it, however deep, on a device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, MutableMapping):
        moved = copy.copy(batch)  # of its own kind, such as transformers' BatchEncoding
        moved.update({name: to_device(value, device) for name, value in batch.items()})
        return moved
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def first_rows(batch: Batch, num_rows: int) -> Batch:
    """The first rows of a batch whose tensors, however deep, have one entry for each row."""
    if isinstance(batch, torch.Tensor):
        return batch[:num_rows]
    if isinstance(batch, Mapping):
        return {name: first_rows(value, num_rows) for name, value in batch.items()}
    if isinstance(batch, list):
        return batch[:num_rows]
    if isinstance(batch, tuple):
        return tuple(first_rows(value, num_rows) for value in batch)
    return batch
