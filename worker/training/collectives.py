"""The ranks of one training as each of them sees the others: who leads, what the leader says, and means over all.

Ranks talk by two ways. Gradients go over NCCL between GPUs and over gloo between CPU slots. What is small and on the
host (a stop, losses, scores) goes over gloo in a group of its own, so that no GPU has to be waited for.
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

_MEET_TIMEOUT = timedelta(days=1)
"""For all ranks to come to one point: one may prepare rows or write a checkpoint for hours. It is no way to notice a
dead rank, which its runner sees at once, and then kills the others."""
_EXCHANGE_TIMEOUT = timedelta(minutes=30)
"""For one exchange of gradients; torch's own for gloo."""


class Gang(Protocol):
    """All ranks of a training."""

    rank: int
    size: int

    def broadcast(self, *numbers: int) -> tuple[int, ...]:
        """What the leader says, on every rank."""
        ...

    def all_reduce_mean(self, values: Sequence[float]) -> list[float]:
        """The mean over the ranks of each value, on every rank."""
        ...

    def all_gather(self, value: Any) -> list[Any]:
        """Each rank's value, a JSON-like one, in the order of ranks."""
        ...

    def barrier(self) -> None:
        """Wait until all are here."""
        ...

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """While inside, the leader alone; then all others."""
        ...

    def close(self) -> None:
        """The training is over."""
        ...


class SingleProcess:
    """A gang of one."""

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
    """A gang of several, each a process."""

    def __init__(self, rank: int, size: int, *, folder: Path, device: str) -> None:
        """Meet the others.

        Args:
            rank: of this process; 0 leads.
            size: how many there are.
            folder: one that all see; they find each other by a file in it.
            device: `cuda` or `cpu`.
        """
        self.rank, self.size = rank, size
        # What torchrun sets, by which transformers and users' modules know that they are one of several.
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
        }  # fmt: skip
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one host; its name need not resolve to an address
        if device == "cuda":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            init_method=f"file://{folder / 'ranks'}",
            rank=rank,
            world_size=size,
            timeout=_EXCHANGE_TIMEOUT,
        )
        self._control = dist.new_group(backend="gloo", timeout=_MEET_TIMEOUT)

    def broadcast(self, *numbers: int) -> tuple[int, ...]:
        """See `Gang`."""
        told = torch.tensor(numbers, dtype=torch.int64)
        dist.broadcast(told, src=0, group=self._control)
        return tuple(told.tolist())

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
