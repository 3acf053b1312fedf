"""Divide the rows of one chunk into batches, and the default budget of padded tokens per device. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

CPU_MAX_TOKENS = 3072
"""Most padded tokens in a batch on a CPU. 2-4 thousand are faster than 8 thousand: the activations fit its caches."""
CUDA_MAX_TOKENS = 65_536
"""Most padded tokens in a batch on a GPU with enough memory; more does not make it faster."""
CUDA_TOKENS_PER_GIB = 4096
CPU_BATCH_COST = 64
"""Fixed cost of a forward pass on a CPU, in tokens that could be computed in the same time. Measured on MiniLM with 2
threads: 43; less for a larger model. An error of 50 percent here costs 1 percent of speed."""
CUDA_BATCH_COST = 4096
"""Fixed cost of a forward pass on a GPU, in tokens: each one launches hundreds of kernels."""
CPU_MAX_ROWS = 256
CUDA_MAX_ROWS = 2048
CPU_CACHE_TOKENS = 16_384
"""Most tokens in the cache of rows that are generated together on a CPU; they take memory, but little time."""
CPU_GENERATED_TOKENS = 24_576
"""Most tokens of such rows, inputs included, for models whose inputs are media: 16 windows of Whisper. One forward pass
for a token of each row costs nearly the same for one row as for 16."""
CUDA_CACHE_TOKENS = 1_048_576
CUDA_CACHE_SHARE = 2
"""A GPU's spare memory divided by this is for the cache of such rows; the rest is for forward passes."""
CPU_ROWS_IN_FLIGHT = 32
CUDA_ROWS_IN_FLIGHT = 256
PACKED_SPREAD = 2
"""Most tokens that a batch without padding would have with padding, relative to the most tokens in a batch. The outputs
of such a batch are padded on the device, so rows of very different lengths must not share one."""
_GIB = 2**30
_Row = TypeVar("_Row")
_SPAN_ROWS = 4096
"""Number of rows that are divided at once: the work grows with its square, and larger spans gain nothing."""


def divide(lengths: Sequence[int], *, max_tokens: int, max_rows: int, batch_cost: int) -> list[list[int]]:
    """Divide rows, sorted by length, into the batches with the least cost: padded tokens plus a fixed cost per batch.

    Large batches pad short rows to the length of long ones; small batches pay the overhead of many forward passes.
    Dynamic programming finds the optimum. The result depends only on the arguments. The longest rows come first (so
    that an out-of-memory shows at the start), and rows of equal length stay in order.

    Args:
        lengths: Number of tokens of each row.
        max_tokens: Most tokens in a batch, padding included; only a batch of a single row may exceed it.
        max_rows: Most rows in a batch.
        batch_cost: Fixed cost of a forward pass, in tokens that could be computed in the same time.

    Returns:
        Batches of positions in `lengths`, every position exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    descending = [max(1, lengths[position]) for position in order]
    batches = []
    for first in range(0, len(order), _SPAN_ROWS):
        span = descending[first : first + _SPAN_ROWS]
        for start, stop in _cheapest_cuts(span, max_tokens, max_rows, batch_cost):
            batches.append(order[first + start : first + stop])
    return batches


def divide_without_padding(
    lengths: Sequence[int], *, max_tokens: int, max_rows: int, pads_outputs: bool
) -> list[list[int]]:
    """Divide rows into the fewest batches that can be computed without padding, in the order of `divide`.

    Args:
        lengths: Number of tokens of each row.
        max_tokens: Most tokens in a batch; only a batch of a single row may exceed it.
        max_rows: Most rows in a batch.
        pads_outputs: Whether the outputs of a batch are padded; then rows of very different lengths share none.

    Returns:
        Batches of positions in `lengths`, every position exactly once.
    """
    most_padded = PACKED_SPREAD * max_tokens if pads_outputs else None
    batches: list[list[int]] = []
    longest = num_tokens = 0
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        length = max(1, lengths[position])
        num_rows = len(batches[-1]) + 1 if batches else max_rows + 1
        is_full = num_tokens + length > max_tokens or (most_padded is not None and num_rows * longest > most_padded)
        if num_rows > max_rows or is_full:
            batches.append([])
            longest, num_tokens = length, 0
        batches[-1].append(position)
        num_tokens += length
    return batches


def _cheapest_cuts(descending: Sequence[int], max_tokens: int, max_rows: int, batch_cost: int) -> list[tuple[int, int]]:
    num_rows = len(descending)
    cheapest = np.full(num_rows + 1, np.iinfo(np.int64).max)  # of the rows before each place, cut in the best way
    cheapest[0] = 0
    last_start = np.zeros(num_rows + 1, dtype=np.int64)
    for start, longest in enumerate(descending):
        most = min(num_rows - start, max_rows, max(1, max_tokens // longest))
        costs = cheapest[start] + batch_cost + longest * np.arange(1, most + 1)
        stops = slice(start + 1, start + most + 1)
        is_better = costs < cheapest[stops]
        cheapest[stops][is_better] = costs[is_better]
        last_start[stops][is_better] = start
    cuts = []
    stop = num_rows
    while stop:
        start = int(last_start[stop])
        cuts.append((start, stop))
        stop = start
    return cuts[::-1]


def padded_tokens(lengths: Sequence[int]) -> int:
    """Number of tokens in a batch, padding included."""
    return len(lengths) * max(1, max(lengths, default=0))


def auto_max_tokens(device_type: str, spare_bytes: int, *, generates: bool = False) -> int:
    """The default budget of a device, if neither the user nor an earlier out-of-memory has set one.

    Args:
        device_type: `cpu` or `cuda`.
        spare_bytes: The GPU's total memory minus the model's weights. Not its free memory, which varies between runs:
            the same chunk must be divided the same way on every device of a kind.
        generates: Whether a batch takes many forward passes, one for each token that is generated.
    """
    if device_type != "cuda":
        return CPU_GENERATED_TOKENS if generates else CPU_MAX_TOKENS
    return max(1024, min(CUDA_MAX_TOKENS, spare_bytes * CUDA_TOKENS_PER_GIB // _GIB // 1024 * 1024))


def auto_cache_tokens(device_type: str, spare_bytes: int, token_bytes: int) -> int:
    """The default budget for rows that are generated together, each with a growing cache of keys and values.

    Args:
        device_type: `cpu` or `cuda`.
        spare_bytes: See `auto_max_tokens`.
        token_bytes: Memory that one token takes in the cache.
    """
    if device_type != "cuda":
        return CPU_CACHE_TOKENS
    fitting = spare_bytes // CUDA_CACHE_SHARE // token_bytes // 1024 * 1024
    return max(1024, min(CUDA_CACHE_TOKENS, fitting))


def auto_rows_in_flight(device_type: str) -> int:
    """Most rows that are generated together, if the user sets no limit."""
    return CUDA_ROWS_IN_FLIGHT if device_type == "cuda" else CPU_ROWS_IN_FLIGHT


def auto_max_rows(device_type: str) -> int:
    """Most rows in a batch, if the user sets no limit; it bounds batches of very short rows."""
    return CUDA_MAX_ROWS if device_type == "cuda" else CPU_MAX_ROWS


def batch_cost(device_type: str) -> int:
    """Fixed cost of a forward pass, in tokens that could be computed in the same time."""
    return CUDA_BATCH_COST if device_type == "cuda" else CPU_BATCH_COST


def split_by_bytes(rows: Iterable[_Row], num_bytes: Callable[[_Row], int], most_bytes: int) -> Iterator[list[_Row]]:
    """Split rows, in order, into lists that are as long as fit into `most_bytes`; a larger row is alone in its list.

    Args:
        rows: The rows; each is taken only when the lists before it have been used.
        num_bytes: The memory that a row takes.
        most_bytes: Most memory of a list.
    """
    together: list[_Row] = []
    total = 0
    for row in rows:
        if together and total + num_bytes(row) > most_bytes:
            yield together
            together, total = [], 0
        together.append(row)
        total += num_bytes(row)
    if together:
        yield together
