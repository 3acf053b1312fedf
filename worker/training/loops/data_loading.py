"""The batches of the plain loop: which rows each rank takes at each step, and loaders with reproducible rows."""

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
"""(epoch, row). Together with the seed it determines the random numbers of a row."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a training are divided into steps and ranks."""

    num_rows: int
    seed: int
    micro_batch: int
    """Number of rows of one micro-batch on one rank."""
    accumulation: int
    """Number of micro-batches of one step on one rank."""
    drops_last: bool
    rank: int
    num_ranks: int

    @property
    def epoch_batches(self) -> int:
        """Number of micro-batches of an epoch on one rank; the same on all ranks."""
        batches = self.num_rows / (self.micro_batch * self.num_ranks)
        return math.floor(batches) if self.drops_last else math.ceil(batches)

    @property
    def epoch_steps(self) -> int:
        """Number of steps of an epoch. The last step may have fewer micro-batches."""
        return math.ceil(self.epoch_batches / self.accumulation)

    @property
    def step_rows(self) -> int:
        """Number of rows of one step on all ranks together."""
        return self.micro_batch * self.accumulation * self.num_ranks

    def steps(self, epoch: int, first_step: int) -> list[list[list[Draw]]]:
        """Return this rank's rows in the steps of an epoch.

        Args:
            epoch: Number of the epoch, from 0.
            first_step: Number of the first step in the epoch, from 0; earlier steps are left out.

        Returns:
            For each step its micro-batches, and for each micro-batch its draws.
        """
        sampler = EpochSampler(self.num_rows, seed=self.seed)
        sampler.set_epoch(epoch)
        order = list(sampler)
        if self.num_ranks > 1 and not self.drops_last:
            # All ranks must compute gradients of equally many rows, so missing rows are taken from the front.
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
    """Rows by draw. The generators are seeded from the draw before each row is made."""

    def __init__(self, rows: Rows, seed: int) -> None:
        self._rows, self._seed = rows, seed

    def __getitem__(self, draw: Draw) -> Any:
        if get_worker_info() is not None:  # no other random numbers are drawn in this process
            rng.seed_host(self._seed, *draw)
            try:
                return self._rows[draw[1]]
            except SystemExit as error:  # otherwise the loader would report a dead process
                raise RuntimeError(f"a row ended its process: SystemExit: {error}") from error
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
    """Load batches in order and move them to the device.

    Args:
        rows: The data set.
        batches: The draws of each batch.
        collate: Makes a batch of a list of rows.
        seed: Seed of the random numbers of rows.
        num_workers: Number of processes that load batches ahead; 0: load in this process.
        device: The device to move batches to.
    """
    loader: DataLoader[Any] = DataLoader(
        _Drawn(rows, seed),
        batch_sampler=[list(batch) for batch in batches],
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the global generator must not change: its state is saved with checkpoints
    )
    return (to_device(batch, device) for batch in loader)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move all tensors of a batch to a device, at any depth."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, MutableMapping):
        moved = copy.copy(batch)  # keeps the type, such as transformers' BatchEncoding
        moved.update({name: to_device(value, device) for name, value in batch.items()})
        return moved
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def first_rows(batch: Batch, num_rows: int) -> Batch:
    """Return the first rows of a batch whose tensors, at any depth, have one entry for each row."""
    if isinstance(batch, torch.Tensor):
        return batch[:num_rows]
    if isinstance(batch, Mapping):
        return {name: first_rows(value, num_rows) for name, value in batch.items()}
    if isinstance(batch, list):
        return batch[:num_rows]
    if isinstance(batch, tuple):
        return tuple(first_rows(value, num_rows) for value in batch)
    return batch
