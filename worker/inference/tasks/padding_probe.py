"""Test whether the other rows of a batch change a row's output. This works for any architecture.

A row of random tokens is computed alone, then with others of its own length, then with longer ones, padded on the
tokenizer's own side or on the other. The model's output for the row's own tokens must stay the same. In 16 bits, the
rounding differences between kernels for different shapes are as large as the effect of slightly wrong padding. So the
embeddings of padding are also replaced by noise: shape and kernels stay the same, and so must every bit of the output.

Shapes: B rows, T tokens, X the model's output for each token; or (B, X), one output for each row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from worker.device import is_out_of_memory, is_poisoned, one_line
from worker.models.limits import input_embeddings
from worker.models.padding import Padding
from worker.models.tokens import Features, Tokens, to_device

logger = logging.getLogger(__name__)

Compute = Callable[[Mapping[str, Tensor]], Tensor]
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
_UNEXPLAINED = 10
"""By how much less a float32 output may differ where the padding's vectors are known to be read."""


def probe_padding(
    tokens: Tokens, model: PreTrainedModel, compute: Compute, *, longest: int | None, looks_for_ends: bool = False
) -> Padding:
    """Find out which rows of a model may share a batch.

    Args:
        tokens: The model's tokenizer.
        model: The model, on its device and in its dtype.
        compute: Computes the model's output, (B, T, X) or (B, X), from a batch's inputs on the device.
        longest: The most tokens in a row, if there is a limit.
        looks_for_ends: Whether the model may find the end of a row by its tokens, as decoders for classification do.

    Returns:
        How rows may be batched; `EQUAL_LENGTHS` if the test itself fails, since such rows need no padding.

    Raises:
        RuntimeError: The device has too little memory or was lost.
    """
    try:
        with torch.inference_mode():
            return _Probe(tokens, model, compute, longest).find(looks_for_ends=looks_for_ends)
    except Exception as error:
        if is_out_of_memory(error) or is_poisoned(error):
            raise
        logger.warning("whether this model bears padding could not be found out: %s", one_line(error))
        return Padding.EQUAL_LENGTHS


class _Probe:
    """One model and the rows that it is tested with."""

    def __init__(self, tokens: Tokens, model: PreTrainedModel, compute: Compute, longest: int | None) -> None:
        self._tokens, self._model, self._compute = tokens, model, compute
        self._random = np.random.default_rng(0)
        said = tokens.tokenizer("a b", return_special_tokens_mask=True, return_attention_mask=False)
        body = [place for place, special in enumerate(said.pop("special_tokens_mask")) if not special]
        self._columns = {name: np.asarray(column, np.int64) for name, column in said.items()}
        self._first, self._last = body[0], body[-1]
        self._num_special = len(self._columns["input_ids"]) - (self._last + 1 - self._first)
        num_ids = min(len(tokens.tokenizer), tokens.num_ids or len(tokens.tokenizer))
        ids = np.arange(num_ids)
        ordinary = ids[~np.isin(ids, tokens.tokenizer.all_special_ids)]
        self._ids = ordinary if len(ordinary) > 1 else ids
        most = longest or _MOST_LONG
        self._long = min(most, max(_LONG, *(size for size in _block_sizes(model)), 0))
        self._longer = min(most, _LONGER)
        self._short = min(self._longer - 1, max(_SHORT, self._num_special + 2))

    def find(self, *, looks_for_ends: bool) -> Padding:
        short, mate, other_mate = (self._row(self._short) for _ in range(3))
        alone = self._alone(short)
        scale = max(1.0, float(alone.abs().max()))
        unit = _TOLERANCE.get(alone.dtype, _TOLERANCE_16_BITS) * scale
        beside = [self._first_of([short, one], Padding.RIGHT) for one in (mate, other_mate)]
        noise = max(_difference(alone, one) for one in beside)
        if not noise <= _UNEXPLAINED * unit:  # also true for NaN
            return Padding.ONE_BY_ONE
        # In a deep model another shape alone makes a larger difference; rows of equal length show how large.
        tolerance = max(unit, _UNEXPLAINED * noise)
        long, long_mate = self._row(self._long), self._row(self._long)
        if not _difference(self._alone(long), self._first_of([long, long_mate], Padding.RIGHT)) <= tolerance:
            return Padding.ONE_BY_ONE
        for side in self._tokens.sides:
            if self._bears(side, short, alone, long, tolerance, looks_for_ends=looks_for_ends):
                return side
        return Padding.EQUAL_LENGTHS

    def _bears(
        self,
        side: Padding,
        short: Features,
        alone: Tensor,
        long: Features,
        tolerance: float,
        *,
        looks_for_ends: bool,
    ) -> bool:
        longer = self._row(self._longer)
        worst = 0.0
        for mate in (longer, long):
            worst = max(worst, _difference(alone, self._first_of([short, mate], side)))
            if not worst <= tolerance:
                return False
        nearly = self._row(self._longer - 1)
        worst = max(worst, _difference(self._alone(nearly), self._first_of([nearly, longer], side)))
        if not worst <= tolerance:
            return False
        if self._reads_padding([short, longer], side, tolerance) and not (
            alone.dtype in _TOLERANCE and worst <= tolerance / _UNEXPLAINED
        ):
            return False
        return not looks_for_ends or self._finds_ends(side, longer, tolerance)

    def _reads_padding(self, windows: Sequence[Features], side: Padding, tolerance: float) -> bool:
        """Whether the embeddings of padding change the first row's output; True if that cannot be tested."""
        embeddings = input_embeddings(self._model)
        if embeddings is None:
            return True
        found = []
        for seed in (0, 1, 1):
            with _noise_in_padding(self._model, embeddings, self._mask(windows, side), seed) as replaced:
                found.append(self._first_of(windows, side))
            if not replaced:
                return True
        # Experts get the tokens of all rows together, so other padding means other kernels for them.
        is_exact = torch.equal(found[1], found[2]) and not _has_experts(self._model)
        return not (torch.equal(found[0], found[1]) if is_exact else _difference(found[0], found[1]) <= tolerance)

    def _finds_ends(self, side: Padding, longer: Features, tolerance: float) -> bool:
        """Whether a row with padding or end tokens in its text keeps its output when batched with a longer row."""
        tokenizer = self._tokens.tokenizer
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id, self._tokens.pad_token_id} - {None}
        rows = []
        for end in sorted(end for end in ends if self._tokens.num_ids is None or end < self._tokens.num_ids):
            for place in (-1, -2):
                row = self._row(self._short)
                body_stop = len(row["input_ids"]) - (len(self._columns["input_ids"]) - 1 - self._last)
                row["input_ids"][max(body_stop + place, 0)] = end
                rows.append(row)
        try:
            together = self._outputs([*rows, longer], side)
        except ValueError:  # BART-like models reject such a batch; its rows are then computed alone
            return True
        return all(_difference(self._alone(row), one) <= tolerance for row, one in zip(rows, together, strict=False))

    # -- rows and their outputs

    def _row(self, length: int) -> Features:
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

    def _alone(self, row: Features) -> Tensor:
        return self._first_of([row], Padding.RIGHT)

    def _first_of(self, windows: Sequence[Features], side: Padding) -> Tensor:
        return self._outputs(windows, side)[0]

    def _outputs(self, windows: Sequence[Features], side: Padding) -> list[Tensor]:
        """The model's output for the tokens of each row, without padding."""
        outputs = self._compute(to_device(self._tokens.padded(windows, side), self._model.device))
        if outputs.dim() < 3:
            return list(outputs)
        lengths = [len(window["input_ids"]) for window in windows]
        if outputs.shape[1] != max(lengths):
            raise ValueError(f"{outputs.shape[1]} outputs for {max(lengths)} tokens")
        return [
            one[-length:] if side == Padding.LEFT else one[:length]
            for one, length in zip(outputs, lengths, strict=True)
        ]

    def _mask(self, windows: Sequence[Features], side: Padding) -> Tensor:
        return self._tokens.padded(windows, side)["attention_mask"].to(self._model.device) == 0


@contextmanager
def _noise_in_padding(
    model: PreTrainedModel, embeddings: torch.nn.Embedding, is_padding_BT: Tensor, seed: int
) -> Iterator[list[bool]]:
    """Replace the embeddings of padding by noise. The yielded list is empty as long as none was replaced."""
    generator = torch.Generator().manual_seed(seed)
    noise_X = torch.randn(embeddings.embedding_dim, generator=generator) * 3 * float(embeddings.weight.float().std())
    noise_X = noise_X.to(embeddings.weight)
    replaced: list[bool] = []

    def replace(_: Any, __: Any, vectors: Tensor) -> Tensor | None:
        # XLNet's axes are (tokens, rows). A probe has more tokens than rows, so that this can be detected.
        for is_padding in (is_padding_BT, is_padding_BT.T):
            if vectors.shape[:-1] == is_padding.shape:
                replaced.append(True)
                return torch.where(is_padding.unsqueeze(-1), noise_X, vectors)
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


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def _has_experts(model: PreTrainedModel) -> bool:
    return any("expert" in name for name, _ in model.named_modules())


def _block_sizes(model: PreTrainedModel) -> Iterator[int]:
    """Lengths of rows that fill the required number of blocks, for each block size in the model's config."""
    for name, value in vars(model.config).items():
        for part, count in _BLOCKS.items():
            sizes = value if isinstance(value, (list, tuple)) else [value]
            if part in name and all(isinstance(size, int) for size in sizes) and sizes:
                yield min(_MOST_LONG, count * max(sizes))
