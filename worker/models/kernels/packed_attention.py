"""Attention within each row of a packed batch: its rows lie one behind the other in a single row, without padding.

transformers calls an implementation of attention by its name (`AttentionInterface`). The one here gets the boundaries
of the rows with transformers' own arguments for packed batches (`FlashAttentionKwargs`). No function that makes masks
is registered under its name, so models make none. On a GPU it is `torch.nn.attention.varlen.varlen_attn`, which needs
16-bit numbers and compute capability 8.0; on a CPU rows of equal length are computed together.

Shapes: T tokens of all B rows, H heads of the queries, G heads of keys and values, K dimensions of a head.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils import is_flash_attn_3_available

from worker.models.transformers_internals import attention_implementation

IMPLEMENTATION = "stoker_packed"
"""Name of the implementation in this file."""
_SDPA = "sdpa"
_UNSUPPORTED = ("softcap", "position_bias", "s_aux", "cache")
"""Arguments with which some models change their attention in a way that is not implemented here."""
_ALIGNMENT = 8  # the kernels need heads of a multiple of this size


def implementation_for(device: torch.device) -> str:
    """The implementation that packed batches use: FlashAttention 3 where it is installed, else the one of this file."""
    return "flash_attention_3" if device.type == "cuda" and is_flash_attn_3_available() else IMPLEMENTATION


def pack_attention(model: PreTrainedModel) -> bool:
    """Make a model compute packed batches only.

    Returns:
        Whether its architecture lets its attention be replaced. If not, the model is unchanged.
    """
    if attention_implementation(model) != _SDPA:
        return False
    wanted = implementation_for(model.device)
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # otherwise it warns about models whose attention cannot be replaced
    try:
        model.set_attn_implementation(wanted)
    finally:
        transformers.logging.set_verbosity(before)
    if attention_implementation(model) == wanted:
        return True
    restore_attention(model)  # parts of the model with their own configuration may have been changed
    return False


def restore_attention(model: PreTrainedModel) -> None:
    """Undo `pack_attention`."""
    model.set_attn_implementation(_SDPA)


def packed_attention(
    module: torch.nn.Module,
    query_1HTK: Tensor,
    key_1GTK: Tensor,
    value_1GTK: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute attention; called by transformers' models.

    Args:
        module: The attention layer; its `is_causal` counts if the argument is not given.
        attention_mask: Must be None.
        dropout: Must be 0.
        scaling: Factor of the scores; by default 1 / sqrt(K).
        is_causal: Whether a token sees only itself and earlier tokens of its row.
        sliding_window: A token sees less than this many tokens before itself and, if not causal, after itself.
        cu_seq_lens_q: Start of each row and the end of the last one, (B + 1,) int32.
        max_length_q: Number of tokens of the longest row.

    Returns:
        (1, T, H, K), and None for the weights.

    Raises:
        ValueError: The batch is not packed, or the model needs attention of another kind.
    """
    if cu_seq_lens_q is None or max_length_q is None or attention_mask is not None or len(query_1HTK) != 1:
        raise ValueError("the model's attention is set to packed batches, but this batch is padded")
    changed = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if changed or dropout or value_1GTK.shape[-1] != key_1GTK.shape[-1]:
        raise ValueError(f"packed attention does not support {', '.join(changed) or 'this model'}")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    scale = query_1HTK.shape[-1] ** -0.5 if scaling is None else scaling
    before = -1 if sliding_window is None else sliding_window - 1
    window = (before, 0 if is_causal else before)
    if query_1HTK.is_cuda:
        found = _on_gpu(query_1HTK, key_1GTK, value_1GTK, cu_seq_lens_q, max_length_q, scale, window)
    else:
        found = _by_length(query_1HTK, key_1GTK, value_1GTK, cu_seq_lens_q.tolist(), scale, window)
    return found, None


def _on_gpu(
    query_1HTK: Tensor,
    key_1GTK: Tensor,
    value_1GTK: Tensor,
    boundaries: Tensor,
    longest: int,
    scale: float,
    window: tuple[int, int],
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    size = query_1HTK.shape[-1]
    query, key, value = (one[0].transpose(0, 1) for one in (query_1HTK, key_1GTK, value_1GTK))
    if size % _ALIGNMENT:
        query, key, value = (functional.pad(one, (0, -size % _ALIGNMENT)) for one in (query, key, value))
    found_THK: Tensor = varlen_attn(  # type: ignore[assignment] # it returns a tuple only if asked to
        query,
        key,
        value,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scale,
        window_size=window,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return found_THK[..., :size].unsqueeze(0)


def _by_length(
    query_1HTK: Tensor,
    key_1GTK: Tensor,
    value_1GTK: Tensor,
    boundaries: list[int],
    scale: float,
    window: tuple[int, int],
) -> Tensor:
    outputs = []
    start = 0
    for length, rows in groupby(stop - begin for begin, stop in pairwise(boundaries)):
        # Batches are sorted by length, so many neighbours are equally long: one call computes them all.
        num_rows = len(list(rows))
        stop = start + num_rows * length
        query, key, value = (
            one[0, :, start:stop].reshape(one.shape[1], num_rows, length, -1).transpose(0, 1)
            for one in (query_1HTK, key_1GTK, value_1GTK)
        )
        found = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=_mask(length, window, query.device),
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        outputs.append(found.transpose(1, 2).flatten(0, 1))
        start = stop
    return torch.cat(outputs).unsqueeze(0)


def _mask(length: int, window: tuple[int, int], device: torch.device) -> Tensor | None:
    """Which tokens a token of a row sees, (length, length); None if it sees all."""
    if window == (-1, -1):
        return None
    places = torch.arange(length, device=device)
    before = places[:, None] - places[None, :]
    mask = torch.ones_like(before, dtype=torch.bool)
    if window[0] >= 0:
        mask &= before <= window[0]
    if window[1] >= 0:
        mask &= -before <= window[1]
    return mask


AttentionInterface.register(IMPLEMENTATION, packed_attention)
