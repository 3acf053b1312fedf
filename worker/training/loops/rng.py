"""Saves, restores and seeds the random number generators that a training may use."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

_FILE = "generators-{rank}.pt"


def states() -> dict[str, Any]:
    """Return the states of all generators, in types that `torch.load` reads with `weights_only`."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore(found: dict[str, Any]) -> None:
    """Restore the states of all generators."""
    random.setstate(found["python"])
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(found["torch"])
    if found["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])


def save(folder: Path, rank: int) -> None:
    """Write the states of a rank's generators into the folder of a checkpoint."""
    torch.save(states(), folder / _FILE.format(rank=rank))


def load(folder: Path, rank: int) -> None:
    """Restore what `save` wrote."""
    restore(torch.load(folder / _FILE.format(rank=rank), map_location="cpu", weights_only=True))


@contextmanager
def kept() -> Iterator[None]:
    """Restore the states of all generators after the block."""
    before = states()
    try:
        yield
    finally:
        restore(before)


@contextmanager
def host_kept() -> Iterator[None]:
    """Restore the host's generators at the end, and leave the device's alone: fast enough for each row."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def seed_host(*place: int) -> None:
    """Seed the generators on the host from a place, such as (seed, epoch, row). The GPU's generator is not changed."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    torch.default_generator.manual_seed(number)


def seed_all(seed: int) -> None:
    """Seed all generators, also the GPU's."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)
