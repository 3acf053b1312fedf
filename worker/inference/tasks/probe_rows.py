"""Rows of random tokens with which a model is tested at load, and the model's outputs for them.

Shapes: B rows, T tokens, X the model's output for each token; or (B, X), one output for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from worker.models.texts.padding import Padding
from worker.models.texts.tokens import Features, Tokens, to_device

Compute = Callable[[Mapping[str, Tensor]], Tensor]
"""Computes a model's output, (B, T, X) or (B, X), from a batch's inputs on the device."""
_SHORT, _LONGER, _LONG = 5, 24, 136
"""Lengths of the probed rows, if the model accepts them; the last fills several blocks of block attention."""
_MOST_LONG = 1024
_BLOCKS = {"block_size": 12, "num_landmarks": 2, "chunk_length": 2, "attention_window": 2}
"""Part of the name of a block size in a config -> number of blocks that a row must fill to reach the model's other code
path (BigBird's sparse attention begins at eleven blocks)."""
_TOLERANCE = {torch.float32: 2e-5, torch.float64: 2e-5}
_TOLERANCE_16_BITS = 0.1
"""Largest difference that another shape alone may cause, for outputs of about 1. Measured on 19 correct architectures:
at most 2e-6 in float32 and 1.4e-2 in bfloat16; with padding on the wrong side, 0.4 to 9 in both."""


class ProbeRows:
    """Makes rows for one model, and computes them."""

    def __init__(self, tokens: Tokens, model: PreTrainedModel, compute: Compute, longest: int | None) -> None:
        """
        Args:
            tokens: The model's tokenizer.
            model: The model, on its device and in its dtype.
            compute: The task's function for a forward pass.
            longest: The most tokens in a row, if there is a limit.
        """
        self.tokens, self.model, self._compute = tokens, model, compute
        self._random = np.random.default_rng(0)
        encoding = tokens.tokenizer("a b", return_special_tokens_mask=True, return_attention_mask=False)
        body = [place for place, special in enumerate(encoding.pop("special_tokens_mask")) if not special]
        self._columns = {name: np.asarray(column, np.int64) for name, column in encoding.items()}
        self._first, self._last = body[0], body[-1]
        self._num_special = len(self._columns["input_ids"]) - (self._last + 1 - self._first)
        num_ids = min(len(tokens.tokenizer), tokens.num_ids or len(tokens.tokenizer))
        ids = np.arange(num_ids)
        ordinary = ids[~np.isin(ids, tokens.tokenizer.all_special_ids)]
        self._ids = ordinary if len(ordinary) > 1 else ids
        self.most = longest
        most = longest or _MOST_LONG
        self.long = min(most, max(_LONG, *(size for size in _block_sizes(model)), 0))
        self.longer = min(most, _LONGER)
        self.short = min(self.longer - 1, max(_SHORT, self._num_special + 2))

    def row(self, length: int) -> Features:
        """A row of random tokens, with the special tokens and further columns that the tokenizer adds to a text."""
        num_body = length - self._num_special
        row = {
            name: np.concatenate(
                [column[: self._first], np.repeat(column[self._first], num_body), column[self._last + 1 :]]
            )
            for name, column in self._columns.items()
        }
        row["input_ids"][self._first : self._first + num_body] = self._random.choice(self._ids, num_body)
        return row

    def with_ends(self) -> list[Features]:
        """Rows that have a padding or end token in their text, as its last token or the one before."""
        tokenizer = self.tokens.tokenizer
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id, self.tokens.pad_token_id} - {None}
        rows = []
        for end in sorted(end for end in ends if self.tokens.num_ids is None or end < self.tokens.num_ids):
            for place in (-1, -2):
                row = self.row(self.short)
                body_stop = len(row["input_ids"]) - (len(self._columns["input_ids"]) - 1 - self._last)
                row["input_ids"][max(body_stop + place, 0)] = end
                rows.append(row)
        return rows

    def of_special_tokens(self, length: int) -> Features:
        """A row whose text is all special tokens that the model has, as often as they fit."""
        row = self.row(length)
        special = [
            one for one in self.tokens.tokenizer.all_special_ids if not self.tokens.num_ids or one < self.tokens.num_ids
        ]
        body = row["input_ids"][self._first : self._first + length - self._num_special]
        body[:] = np.resize(special or body, len(body))
        return row

    def alone(self, row: Features) -> Tensor:
        """The model's output for the tokens of a row by itself."""
        return self.first_of([row], Padding.RIGHT)

    def first_of(self, windows: Sequence[Features], side: Padding) -> Tensor:
        """The model's output for the tokens of the first of several rows; see `padded`."""
        return self.padded(windows, side)[0]

    def padded(self, windows: Sequence[Features], side: Padding) -> list[Tensor]:
        """The model's output for the tokens of each row of a batch that is padded on this side."""
        return self._outputs(windows, self.tokens.padded(windows, side), side)

    def packed(self, windows: Sequence[Features]) -> list[Tensor]:
        """The model's output for the tokens of each row of a packed batch."""
        return self._outputs(windows, self.tokens.packed(windows), Padding.RIGHT)

    def _outputs(self, windows: Sequence[Features], inputs: Mapping[str, Tensor], side: Padding) -> list[Tensor]:
        outputs = self._compute(to_device(inputs, self.model.device))
        if outputs.dim() < 3:
            return list(outputs)
        lengths = [len(window["input_ids"]) for window in windows]
        if outputs.shape[1] != max(lengths):
            raise ValueError(f"{outputs.shape[1]} outputs for {max(lengths)} tokens")
        return [
            one[-length:] if side == Padding.LEFT else one[:length]
            for one, length in zip(outputs, lengths, strict=True)
        ]


@contextmanager
def noise_in(
    model: PreTrainedModel, embeddings: torch.nn.Embedding, is_noise_BT: Tensor, seed: int
) -> Iterator[list[bool]]:
    """Replace the embeddings of some tokens by noise. The yielded list is empty as long as none was replaced."""
    generator = torch.Generator().manual_seed(seed)
    noise_X = torch.randn(embeddings.embedding_dim, generator=generator) * 3 * float(embeddings.weight.float().std())
    noise_X = noise_X.to(embeddings.weight)
    replaced: list[bool] = []

    def replace(_: Any, __: Any, vectors: Tensor) -> Tensor | None:
        # XLNet's axes are (tokens, rows). A probe has more tokens than rows, so that this can be detected.
        for is_noise in (is_noise_BT, is_noise_BT.T):
            if vectors.shape[:-1] == is_noise.shape:
                replaced.append(True)
                return torch.where(is_noise.unsqueeze(-1), noise_X, vectors)
        return None

    # Encoder and decoder may have separate modules that share one table.
    tables = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module.weight.data_ptr() == embeddings.weight.data_ptr()
    ]
    hooks = [table.register_forward_hook(replace) for table in tables]
    try:
        yield replaced
    finally:
        for hook in hooks:
            hook.remove()


def is_exact(dtype: torch.dtype) -> bool:
    """Whether outputs of this dtype have so many digits that even a small effect of other rows shows."""
    return dtype in _TOLERANCE


def tolerance_for(outputs: Tensor) -> float:
    """The largest difference to these outputs that another shape alone may cause."""
    return _TOLERANCE.get(outputs.dtype, _TOLERANCE_16_BITS) * max(1.0, float(outputs.abs().max()))


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference between two outputs; NaN if one has a NaN."""
    return float((one.float() - other.float()).abs().max())


def has_experts(model: PreTrainedModel) -> bool:
    """Whether a model's experts get the tokens of all rows together, so that other rows mean other kernels for them."""
    return any("expert" in name for name, _ in model.named_modules())


def _block_sizes(model: PreTrainedModel) -> Iterator[int]:
    """Lengths of rows that fill the required number of blocks, for each block size in the model's config."""
    for name, value in vars(model.config).items():
        for part, count in _BLOCKS.items():
            sizes = value if isinstance(value, (list, tuple)) else [value]
            if part in name and all(isinstance(size, int) for size in sizes) and sizes:
                yield min(_MOST_LONG, count * max(sizes))
