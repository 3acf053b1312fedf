"""Pure: how the rows of one chunk are packed into batches, and the budget of padded tokens a device starts with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CPU_MAX_TOKENS = 3072
"""Most padded tokens in a batch on a CPU; 2-4 thousand beat 8 thousand, as the activations then stay in its caches."""
CUDA_MAX_TOKENS = 65_536
"""Most padded tokens in a batch on a GPU with memory to spare; more no longer makes it faster."""
CUDA_TOKENS_PER_GIB = 4096
CPU_BATCH_COST = 64
"""Tokens that a CPU could compute in the time that a forward pass takes beside them. Measured on MiniLM with 2 threads:
43; a larger model has less. The cost of being wrong by half is 1 percent."""
CUDA_BATCH_COST = 4096
"""The same for a GPU, which must be given hundreds of kernels for each forward pass."""
CPU_MAX_ROWS = 256
CUDA_MAX_ROWS = 2048
CPU_CACHE_TOKENS = 16_384
"""Most tokens of rows that are generated together on a CPU; they take memory, but little of its time."""
CUDA_CACHE_TOKENS = 1_048_576
CUDA_CACHE_SHARE = 2
"""A GPU's spare memory, divided by this, is for the keys and values of such rows; the rest is for the passes."""
CPU_ROWS_AT_WORK = 32
CUDA_ROWS_AT_WORK = 256
_GIB = 2**30
_SPAN_ROWS = 4096
"""Rows that are cut at once: the work grows with the square, and longer spans gain nothing."""


def pack(lengths: Sequence[int], *, max_tokens: int, max_rows: int, batch_cost: int) -> list[list[int]]:
    """Cut rows, sorted by length, into the batches that cost the least: padded tokens plus a fixed cost of each batch.

    Few large batches pad short rows to long ones, many small ones pay the overhead of a forward pass each; between them
    lies an optimum, which dynamic programming finds. The result depends on the arguments alone. The longest rows come
    first (so that a batch that does not fit into memory shows at the start), and rows of one length stay in order.

    Args:
        lengths: tokens of each row.
        max_tokens: most tokens in a batch, padding included; only a batch of a single row may exceed it.
        max_rows: most rows in a batch.
        batch_cost: what a forward pass costs beside its tokens, in tokens.

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
    """Tokens of a batch, padding included."""
    return len(lengths) * max(1, max(lengths, default=0))


def auto_max_tokens(device_type: str, spare_bytes: int) -> int:
    """The budget a device starts with where neither the user nor an earlier out-of-memory has set one.

    Args:
        device_type: `cpu` or `cuda`.
        spare_bytes: the GPU's whole memory less the model's weights. Not its free memory, which changes from run to
            run: the same chunk on the same kind of device is to be packed the same way every time.
    """
    if device_type != "cuda":
        return CPU_MAX_TOKENS
    return max(1024, min(CUDA_MAX_TOKENS, spare_bytes * CUDA_TOKENS_PER_GIB // _GIB // 1024 * 1024))


def auto_cache_tokens(device_type: str, spare_bytes: int, token_bytes: int) -> int:
    """The same where rows stay at work for many forward passes, each with a cache that grows.

    Args:
        device_type: `cpu` or `cuda`.
        spare_bytes: as for `auto_max_tokens`.
        token_bytes: what one token takes in the cache.
    """
    if device_type != "cuda":
        return CPU_CACHE_TOKENS
    fitting = spare_bytes // CUDA_CACHE_SHARE // token_bytes // 1024 * 1024
    return max(1024, min(CUDA_CACHE_TOKENS, fitting))


def auto_rows_at_work(device_type: str) -> int:
    """Most of such rows at once, where the user sets none."""
    return CUDA_ROWS_AT_WORK if device_type == "cuda" else CPU_ROWS_AT_WORK


def auto_max_rows(device_type: str) -> int:
    """Most rows in a batch where the user sets none; it bounds batches of very short rows."""
    return CUDA_MAX_ROWS if device_type == "cuda" else CPU_MAX_ROWS


def batch_cost(device_type: str) -> int:
    """What a forward pass costs beside its tokens, in tokens."""
    return CUDA_BATCH_COST if device_type == "cuda" else CPU_BATCH_COST
