"""Collective operations between the ranks of one training: broadcast, mean, gather and barrier.

Ranks communicate in two ways. Gradients go over NCCL between GPUs and over gloo between CPU slots. Small values on the
host (a stop request, losses, metrics) go over gloo in a process group of their own, so that no rank waits for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

_CONTROL_TIMEOUT = timedelta(days=1)
"""Timeout of an operation on the host. It is long, because one rank may prepare rows or write a checkpoint for hours.
Dead ranks are not detected by it: the runner sees a dead rank at once and kills the others."""
_GRADIENT_TIMEOUT = timedelta(minutes=30)
"""Timeout of one exchange of gradients; torch's default for gloo."""


class Gang(Protocol):
    """All ranks of a training, as one of them sees them."""

    rank: int
    size: int

    def broadcast(self, *numbers: int) -> tuple[int, ...]:
        """Return the leader's numbers on every rank."""
        ...

    def all_reduce_mean(self, values: Sequence[float]) -> list[float]:
        """Return the mean over all ranks of each value, on every rank."""
        ...

    def all_gather(self, value: Any) -> list[Any]:
        """Return each rank's value, in the order of ranks, on every rank. Values must be JSON-like."""
        ...

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        ...

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Run the block on the leader first, then on all other ranks."""
        ...

    def close(self) -> None:
        """Release the process groups at the end of the training."""
        ...


class SingleProcess:
    """A gang of one rank: a training on one slot."""

    rank, size = 0, 1

    def broadcast(self, *numbers: int) -> tuple[int, ...]:
        """See `Gang`."""
        return numbers

    def all_reduce_mean(self, values: Sequence[float]) -> list[float]:
        """See `Gang`."""
        return list(values)

    def all_gather(self, value: Any) -> list[Any]:
        """See `Gang`."""
        return [value]

    def barrier(self) -> None:
        """See `Gang`."""

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """See `Gang`."""
        yield

    def close(self) -> None:
        """See `Gang`."""


class Ranks:
    """A gang of several ranks, each one process, over `torch.distributed`."""

    def __init__(self, rank: int, size: int, *, folder: Path, device: str) -> None:
        """Connect to the other ranks; waits for all of them.

        Args:
            rank: The rank of this process; rank 0 is the leader.
            size: The number of ranks.
            folder: A folder that all ranks can read and write; they find each other through a file in it.
            device: `cuda` or `cpu`.
        """
        self.rank, self.size = rank, size
        # The variables that torchrun sets; transformers and users' modules read them.
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
        }  # fmt: skip
        os.environ.setdefault(
            "GLOO_SOCKET_IFNAME", "lo"
        )  # all ranks run on one host, whose name may not resolve to an address
        if device == "cuda":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            init_method=f"file://{folder / 'ranks'}",
            rank=rank,
            world_size=size,
            timeout=_GRADIENT_TIMEOUT,
        )
        self._control = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)

    def broadcast(self, *numbers: int) -> tuple[int, ...]:
        """See `Gang`."""
        tensor = torch.tensor(numbers, dtype=torch.int64)
        dist.broadcast(tensor, src=0, group=self._control)
        return tuple(tensor.tolist())

    def all_reduce_mean(self, values: Sequence[float]) -> list[float]:
        """See `Gang`."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._control)
        means: list[float] = (total / self.size).tolist()
        return means

    def all_gather(self, value: Any) -> list[Any]:
        """See `Gang`."""
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self._control)
        return gathered

    def barrier(self) -> None:
        """See `Gang`."""
        dist.barrier(group=self._control)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """See `Gang`."""
        if self.rank != 0:
            self.barrier()
        yield
        if self.rank == 0:
            self.barrier()

    def close(self) -> None:
        """See `Gang`."""
        dist.destroy_process_group()
