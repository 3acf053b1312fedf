"""Test whether a model computes rows right that are packed one behind the other, without padding.

The outputs of packed rows must be those of each row alone, so each row must see its own positions only. In 16 bits, a
small effect of the neighbours would be lost in rounding. So the embeddings of every other row are also replaced by
noise, and their token ids by special ones, which some models count: shape and kernels stay the same, and so must every
bit of the output of the rows between them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from jobs.messages import one_line
from worker.device import is_out_of_memory, is_poisoned
from worker.inference.tasks.probe_rows import ProbeRows, difference, has_experts, noise_in, tolerance_for
from worker.models.kernels.packed_attention import pack_attention, restore_attention
from worker.models.texts.limits import input_embeddings
from worker.models.texts.tokens import Features

logger = logging.getLogger(__name__)

_MOST_WINDOW = 8192
"""Longest row that is computed to reach the end of a model's sliding window."""
_WINDOWS = ("sliding_window", "local_attention")
_BEHIND = 9  # tokens of a row behind the window


def probe_packing(rows: ProbeRows, *, looks_for_ends: bool) -> bool:
    """Find out whether rows of a model can be packed. If so, its attention is that of packed batches from now on.

    Args:
        rows: Makes and computes rows.
        looks_for_ends: See `probe_padding`.

    Raises:
        RuntimeError: The device has too little memory or was lost.
    """
    found = False
    try:
        windows = [rows.row(length) for length in _lengths(rows)]
        windows.append(rows.of_special_tokens(rows.short + 2))
        if looks_for_ends:
            windows += rows.with_ends()
        alone = [rows.alone(window) for window in windows]
        tolerance = max(tolerance_for(one) for one in alone)
        if not pack_attention(rows.model):
            return False
        try:
            found = _equals(rows, windows, alone, tolerance) and not _mixes_rows(rows, windows, tolerance)
        finally:
            if not found:
                restore_attention(rows.model)
    except Exception as error:
        if is_out_of_memory(error) or is_poisoned(error):
            raise
        logger.info("rows of this model are not packed: %s", one_line(error))
    return found


def _lengths(rows: ProbeRows) -> list[int]:
    """Lengths of the rows that are packed together; with no more tokens in all than the model accepts in a row.

    A model that ignores positions would otherwise look beyond its table, which is fatal on a GPU.
    """
    lengths = [rows.short, rows.longer, rows.short + 1, rows.short + 2]
    room = _MOST_WINDOW + sum(lengths) if rows.most is None else rows.most
    config = rows.model.config.get_text_config()
    sizes = [getattr(config, name, None) for name in _WINDOWS]
    for size in [rows.long, *(size + _BEHIND for size in sizes if isinstance(size, int))]:
        length = min(size, room - sum(lengths))
        if length > rows.longer and (size <= rows.long or length == size):
            lengths.insert(1, length)
    return lengths[:-1]


def _equals(rows: ProbeRows, windows: Sequence[Features], alone: Sequence[Tensor], tolerance: float) -> bool:
    """Whether packed rows have the outputs of each row alone, in this order and in the reverse."""
    found = rows.packed(windows)
    turned = rows.packed(windows[::-1])[::-1]
    return all(
        one.shape == expected.shape and difference(one, expected) <= tolerance
        for outputs in (found, turned)
        for one, expected in zip(outputs, alone, strict=True)
    )


def _mixes_rows(rows: ProbeRows, windows: Sequence[Features], tolerance: float) -> bool:
    """Whether the embeddings of a row change the outputs of another; True if that cannot be tested."""
    embeddings = input_embeddings(rows.model)
    if embeddings is None:
        return True
    lengths = [len(window["input_ids"]) for window in windows]
    for kept in (0, 1):
        is_other = torch.arange(len(windows)) % 2 != kept
        is_noise = is_other.repeat_interleave(torch.tensor(lengths)).unsqueeze(0).to(rows.model.device)
        found = []
        for seed in (0, 1, 1):
            with noise_in(rows.model, embeddings, is_noise, seed) as replaced:
                found.append(_joined(rows, windows, kept))
            if not replaced:
                return True
        others = [
            rows.of_special_tokens(length) if other else window
            for window, length, other in zip(windows, lengths, is_other.tolist(), strict=True)
        ]
        repeats = torch.equal(found[1], found[2]) and not has_experts(rows.model)
        for one in (found[0], _joined(rows, others, kept)):
            if not (torch.equal(one, found[1]) if repeats else difference(one, found[1]) <= tolerance):
                return True
    return False


def _joined(rows: ProbeRows, windows: Sequence[Features], kept: int) -> Tensor:
    """The outputs of every other packed row, from the one with this index."""
    return torch.cat([one.flatten() for one in rows.packed(windows)[kept::2]])
