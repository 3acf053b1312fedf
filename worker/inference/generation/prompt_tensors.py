"""From the prompts of one forward pass to the tensors that the model takes.

Shapes: B rows, T tokens of the longest prompt, S computed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.inference.generation.images.prompt_images import Prompt, PromptImages, joined, model_tokens


@dataclass(frozen=True, slots=True)
class PromptTensors:
    """Prompts padded on the left, on the CPU."""

    tokens: torch.Tensor
    """(B, S) token ids."""
    mask: torch.Tensor
    """(B, T): 1 on the tokens of each prompt."""
    positions: torch.Tensor
    """(B, S), or (3, B, S) for a model with positions in time, height and width."""
    images: dict[str, torch.Tensor]
    """What the model takes besides, for images among the computed tokens: tensors of the images, and (B, T) numbers."""


def prompt_tensors(
    prompts: Sequence[Prompt],
    images: Sequence[PromptImages | None],
    padding: Sequence[int],
    *,
    start: int,
    pad_token: int,
    has_planes: bool,
) -> PromptTensors:
    """Make the tensors of prompts.

    Args:
        prompts: The prompts.
        images: The images of each prompt.
        padding: Number of columns before each prompt.
        start: The first column to compute; the cache holds the columns before it. No image begins before this column
            and ends after it.
        pad_token: Any token that the model has.
        has_planes: Whether the model has positions in time, height and width.
    """
    rows = list(zip(prompts, images, padding, strict=True))
    tokens_BT = torch.tensor([[pad_token] * pad + [*model_tokens(prompt, own)] for prompt, own, pad in rows])
    mask_BT = torch.tensor([[0] * pad + [1] * len(prompt) for prompt, _, pad in rows])
    positions = (mask_BT.cumsum(dim=-1) - 1).clamp(min=0)
    if has_planes:
        positions = positions.expand(3, -1, -1).clone()
        for row, (prompt, own, pad) in enumerate(rows):
            if own is not None and own.positions is not None:
                positions[:, row, pad:] = own.positions[:, : len(prompt)]
    computed = [own for prompt, own, pad in rows if own is not None and min(prompt[max(start - pad, 0) :]) < 0]
    found = joined(computed)
    for name in computed[0].per_token if computed else ():
        found[name] = torch.zeros_like(tokens_BT)
        for row, (prompt, own, pad) in enumerate(rows):
            if own is not None:
                found[name][row, pad:] = own.per_token[name][: len(prompt)]
    return PromptTensors(tokens_BT[:, start:], mask_BT, positions[..., start:], found)
