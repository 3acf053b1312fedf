"""Test whether the other rows of a batch change a row's output. This works for any architecture.

A row of random tokens is computed alone, then with others of its own length, then with longer ones, padded on the
tokenizer's own side or on the other. The model's output for the row's own tokens must stay the same. In 16 bits, the
rounding differences between kernels for different shapes are as large as the effect of slightly wrong padding. So the
embeddings of padding are also replaced by noise: shape and kernels stay the same, and so must every bit of the output.

Shapes: B rows, T tokens, X the model's output for each token; or (B, X), one output for each row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from jobs.messages import one_line
from worker.device import is_out_of_memory, is_poisoned, release_memory
from worker.inference.tasks.packing_probe import probe_packing
from worker.inference.tasks.probe_rows import (
    Compute,
    ProbeRows,
    difference,
    has_experts,
    is_exact,
    noise_in,
    tolerance_for,
)
from worker.models.texts.limits import input_embeddings
from worker.models.texts.padding import Padding
from worker.models.texts.tokens import Features, Tokens

logger = logging.getLogger(__name__)

_UNEXPLAINED = 10
"""By how much less a float32 output may differ where the padding's vectors are known to be read."""


def probe_padding(
    tokens: Tokens,
    model: PreTrainedModel,
    compute: Compute,
    *,
    longest: int | None,
    packs: bool = False,
    looks_for_ends: bool = False,
) -> Padding:
    """Find out which rows of a model may share a batch.

    Args:
        tokens: The model's tokenizer.
        model: The model, on its device and in its dtype.
        compute: Computes the model's output, (B, T, X) or (B, X), from a batch's inputs on the device.
        longest: The most tokens in a row, if there is a limit.
        packs: Whether rows are packed if the model computes them right.
        looks_for_ends: Whether the model may find the end of a row by its tokens, as decoders for classification do.

    Returns:
        How rows may be batched; `EQUAL_LENGTHS` if the test itself fails, since such rows need no padding.

    Raises:
        RuntimeError: The device has too little memory or was lost.
    """
    try:
        with torch.inference_mode():
            rows = ProbeRows(tokens, model, compute, longest)
            found = _Probe(rows).find(looks_for_ends=looks_for_ends)
            if packs and found in (Padding.RIGHT, Padding.LEFT) and _can_pack(rows, looks_for_ends=looks_for_ends):
                return Padding.PACKED
            return found
    except Exception as error:
        if is_out_of_memory(error) or is_poisoned(error):
            raise
        logger.warning("the test whether padding changes the outputs of this model failed: %s", one_line(error))
        return Padding.EQUAL_LENGTHS


def _can_pack(rows: ProbeRows, *, looks_for_ends: bool) -> bool:
    """Whether rows can be packed; False if the device has too little memory to test it."""
    try:
        return probe_packing(rows, looks_for_ends=looks_for_ends)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("too little memory to test whether rows can be packed: %s", one_line(error))
    release_memory(rows.model.device)  # outside the except block, whose frames hold the tensors
    return False


class _Probe:
    """One model and the rows that it is tested with."""

    def __init__(self, rows: ProbeRows) -> None:
        self._rows = rows
        self._tokens, self._model = rows.tokens, rows.model

    def find(self, *, looks_for_ends: bool) -> Padding:
        short, mate, other_mate = (self._rows.row(self._rows.short) for _ in range(3))
        alone = self._rows.alone(short)
        unit = tolerance_for(alone)
        beside = [self._rows.first_of([short, one], Padding.RIGHT) for one in (mate, other_mate)]
        noise = max(difference(alone, one) for one in beside)
        if not noise <= _UNEXPLAINED * unit:  # also true for NaN
            return Padding.ONE_BY_ONE
        # In a deep model another shape alone makes a larger difference; rows of equal length show how large.
        tolerance = max(unit, _UNEXPLAINED * noise)
        long, long_mate = self._rows.row(self._rows.long), self._rows.row(self._rows.long)
        if not difference(self._rows.alone(long), self._rows.first_of([long, long_mate], Padding.RIGHT)) <= tolerance:
            return Padding.ONE_BY_ONE
        for side in self._tokens.sides:
            if self._allows_padding(side, short, alone, long, tolerance, looks_for_ends=looks_for_ends):
                return side
        return Padding.EQUAL_LENGTHS

    def _allows_padding(
        self,
        side: Padding,
        short: Features,
        alone: Tensor,
        long: Features,
        tolerance: float,
        *,
        looks_for_ends: bool,
    ) -> bool:
        longer = self._rows.row(self._rows.longer)
        worst = 0.0
        for mate in (longer, long):
            worst = max(worst, difference(alone, self._rows.first_of([short, mate], side)))
            if not worst <= tolerance:
                return False
        nearly = self._rows.row(self._rows.longer - 1)
        worst = max(worst, difference(self._rows.alone(nearly), self._rows.first_of([nearly, longer], side)))
        if not worst <= tolerance:
            return False
        if self._reads_padding([short, longer], side, tolerance) and not (
            is_exact(alone.dtype) and worst <= tolerance / _UNEXPLAINED
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
            with noise_in(self._model, embeddings, self._mask(windows, side), seed) as replaced:
                found.append(self._rows.first_of(windows, side))
            if not replaced:
                return True
        # Experts get the tokens of all rows together, so other padding means other kernels for them.
        repeats = torch.equal(found[1], found[2]) and not has_experts(self._model)
        return not (torch.equal(found[0], found[1]) if repeats else difference(found[0], found[1]) <= tolerance)

    def _finds_ends(self, side: Padding, longer: Features, tolerance: float) -> bool:
        """Whether a row with padding or end tokens in its text keeps its output when batched with a longer row."""
        rows = self._rows.with_ends()
        try:
            together = self._rows.padded([*rows, longer], side)
        except ValueError:  # BART-like models reject such a batch; its rows are then computed alone
            return True
        return all(
            difference(self._rows.alone(row), one) <= tolerance for row, one in zip(rows, together, strict=False)
        )

    def _mask(self, windows: Sequence[Features], side: Padding) -> Tensor:
        return self._tokens.padded(windows, side)["attention_mask"].to(self._model.device) == 0
