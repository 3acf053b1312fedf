"""Compute a padded batch without its padding: the encoder gets all rows as one, one behind the other.

The rest of a model stays as it is. It gets the padded batch and passes it to its encoder, where hooks replace the batch
by its packed form, and the packed output by its padded form. Heads and pooling then work as always. The output at
padding is that of the row's last token.

Shapes: B rows, T tokens of the longest row, N tokens of all rows, D dimensions of a token's vector.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

PLACES, POSITIONS, BOUNDARIES, COLUMNS = "packed_places", "packed_positions", "packed_boundaries", "packed_columns"
_LAYOUT = (PLACES, POSITIONS, BOUNDARIES, COLUMNS)


def layout_of(rows: Sequence[np.ndarray], *, first_position: int) -> dict[str, np.ndarray]:
    """Describe where each token of a batch lies, in its padded form with padding on the right and in its packed form.

    Args:
        rows: Token ids of each row.
        first_position: Position of a row's first token. If it is not 0, the model counts positions as RoBERTa does: a
            token with the id before it has no position of its own.

    Returns:
        `PLACES`: index of each token in the flattened padded batch, (N,). `POSITIONS`: the token's position in its row,
        (N,). `BOUNDARIES`: start of each row in the packed batch, and the end of the last, (B + 1,) int32. `COLUMNS`:
        index in the packed batch of each token of the padded one, (B, T).
    """
    length_B = np.asarray([len(row) for row in rows], dtype=np.int64)
    boundaries = np.concatenate([[0], length_B.cumsum()])
    columns_T = np.arange(length_B.max())
    places_N = np.flatnonzero(columns_T < length_B[:, None])
    positions_N = places_N % len(columns_T)
    if first_position:
        counted_N = np.concatenate(rows) != first_position - 1
        count_N = counted_N.cumsum()
        before_B = np.concatenate([[0], count_N])[boundaries[:-1]]
        positions_N = (count_N - before_B.repeat(length_B)) * counted_N + first_position - 1
    return {
        PLACES: places_N,
        POSITIONS: positions_N,
        BOUNDARIES: boundaries.astype(np.int32),
        COLUMNS: boundaries[:-1, None] + np.minimum(columns_T, length_B[:, None] - 1),
    }


def call_model(model: PreTrainedModel, inputs: Mapping[str, Tensor], **options: Any) -> Any:
    """Call a model with a batch on its device; without padding if `inputs` has the batch's layout.

    Args:
        model: The model; for a batch with a layout, its attention is that of `packed_attention`.
        inputs: The padded batch, and perhaps the tensors of `layout_of`.
        options: Further arguments of the model.

    Returns:
        What the model returns for the padded batch.
    """
    if PLACES not in inputs:
        return model(**inputs, **options)
    packed = _Packed({name: inputs[name] for name in _LAYOUT}, model.base_model)
    with packed:
        return model(**{name: one for name, one in inputs.items() if name not in _LAYOUT}, **options)


class _Packed:
    """Hooks on a model's encoder, for one call."""

    def __init__(self, layout: Mapping[str, Tensor], encoder: torch.nn.Module) -> None:
        self._layout = layout
        self._encoder = encoder
        self._parameters = list(inspect.signature(encoder.forward).parameters)
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        self._hooks = [
            self._encoder.register_forward_pre_hook(self._pack, with_kwargs=True),
            self._encoder.register_forward_hook(self._unpack_output),
        ]
        pooler = getattr(self._encoder, "pooler", None)
        if isinstance(pooler, torch.nn.Module):  # part of the encoder, but it takes the vectors of rows
            self._hooks.append(pooler.register_forward_pre_hook(self._unpack_argument))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _pack(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        padded = dict(zip(self._parameters, args, strict=False)) | kwargs
        shape, places_N = self._layout[COLUMNS].shape, self._layout[PLACES]
        packed = {
            name: one.flatten()[places_N].unsqueeze(0) if isinstance(one, Tensor) and one.shape == shape else one
            for name, one in padded.items()
        }
        packed.pop("attention_mask", None)
        if "position_ids" in self._parameters:
            packed["position_ids"] = self._layout[POSITIONS].unsqueeze(0)
        boundaries, longest = self._layout[BOUNDARIES], shape[1]
        packed.update(cu_seq_lens_q=boundaries, cu_seq_lens_k=boundaries, max_length_q=longest, max_length_k=longest)
        return (), packed

    def _unpack_output(self, _: Any, __: Any, output: Any) -> Any:
        output["last_hidden_state"] = self._unpacked(output["last_hidden_state"])
        return output

    def _unpack_argument(self, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._unpacked(args[0]), *args[1:]) if args[0].dim() == 3 else args

    def _unpacked(self, vectors_1ND: Tensor) -> Tensor:
        return vectors_1ND[0][self._layout[COLUMNS]]
