"""Pack the rows of one chunk into batches, and the default budget of padded tokens per device. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

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
"""The same for a GPU, where each forward pass launches hundreds of kernels."""
CPU_MAX_ROWS = 256
CUDA_MAX_ROWS = 2048
CPU_CACHE_TOKENS = 16_384
"""Most tokens in the cache of rows that are generated together on a CPU; they take memory, but little time."""
CUDA_CACHE_TOKENS = 1_048_576
CUDA_CACHE_SHARE = 2
"""A GPU's spare memory divided by this is for the cache of such rows; the rest is for forward passes."""
CPU_ROWS_AT_WORK = 32
CUDA_ROWS_AT_WORK = 256
_GIB = 2**30
_SPAN_ROWS = 4096
"""Number of rows that are packed at once: the work grows with its square, and larger spans gain nothing."""


def pack(lengths: Sequence[int], *, max_tokens: int, max_rows: int, batch_cost: int) -> list[list[int]]:
    """Pack rows, sorted by length, into the batches with the least cost: padded tokens plus a fixed cost per batch.

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


def auto_max_tokens(device_type: str, spare_bytes: int) -> int:
    """The default budget of a device, if neither the user nor an earlier out-of-memory has set one.

    Args:
        device_type: `cpu` or `cuda`.
        spare_bytes: The GPU's total memory minus the model's weights. Not its free memory, which varies between runs:
            the same chunk must be packed the same way on every device of a kind.
    """
    if device_type != "cuda":
        return CPU_MAX_TOKENS
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


def auto_rows_at_work(device_type: str) -> int:
    """Most rows that are generated together, if the user sets no limit."""
    return CUDA_ROWS_AT_WORK if device_type == "cuda" else CPU_ROWS_AT_WORK


def auto_max_rows(device_type: str) -> int:
    """Most rows in a batch, if the user sets no limit; it bounds batches of very short rows."""
    return CUDA_MAX_ROWS if device_type == "cuda" else CPU_MAX_ROWS


def batch_cost(device_type: str) -> int:
    """Fixed cost of a forward pass, in tokens that could be computed in the same time."""
    return CUDA_BATCH_COST if device_type == "cuda" else CPU_BATCH_COST
