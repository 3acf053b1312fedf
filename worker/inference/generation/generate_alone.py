"""Compute one row by a model's own `generate`, for models whose rows cannot be computed together by the loop.

`generate` runs the forward passes. Tokens are chosen as in the loop, with the row's own parameters and seed: a logits
processor replaces the model's logits by the choice.

Shapes: V tokens of the vocabulary, T tokens of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from worker.inference.generation.continuations import Continuation
from worker.inference.generation.token_choice import TokenChoice

ROWS_ALONE = (
    "rows are computed one at a time by the model's generate, because the decoding loop does not fit this model"
)
"""The notice for a job whose rows are not computed together."""


def is_same(one: Continuation, other: Continuation, tolerance: float) -> bool:
    """Whether two computations of a row agree. Both need log-probabilities.

    Args:
        one: A computation.
        other: The other one.
        tolerance: Largest difference by rounding between log-probabilities of about 1. Where two tokens are equally
            likely within it, either may be chosen, and what comes after them cannot be compared.
    """
    for token, theirs, mine, its in zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=False):
        if not abs(mine.logprob - its.logprob) <= tolerance * max(1.0, abs(mine.logprob)):
            return False
        if token != theirs:
            return True
    return len(one.tokens) == len(other.tokens)


def generate_alone(model: PreTrainedModel, one: Continuation, choice: TokenChoice, between: Callable[[], None]) -> None:
    """Continue a row until it is done.

    Args:
        model: The model.
        one: The row, without tokens so far.
        choice: Chooses the tokens.
        between: Called before each forward pass; an exception that it raises ends the row.
    """
    tokens_1T = torch.tensor([one.request.prompt_tokens], device=model.device)
    inputs: dict[str, torch.Tensor] = {"input_ids": tokens_1T, "attention_mask": torch.ones_like(tokens_1T)}
    images = one.request.images
    if images is not None:
        for name, tensor in images.inputs.items():
            inputs[name] = tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        inputs.update({name: numbers[None].to(model.device) for name, numbers in images.per_token.items()})
    config = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=one.request.max_new_tokens, repetition_penalty=1.0, use_cache=True
    )
    choose = _Choose(one, choice)
    with model.register_forward_pre_hook(lambda *_: between()), model.register_forward_hook(choose.note):
        model.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([choose]),
            stopping_criteria=StoppingCriteriaList([_Done(one)]),
        )


class _Choose(LogitsProcessor):  # type: ignore[misc]
    """Chooses each token, and leaves `generate` only this choice."""

    def __init__(self, one: Continuation, choice: TokenChoice) -> None:
        self._one = one
        self._choice = choice
        self._logits: torch.Tensor | None = None

    def note(self, _model: Any, _arguments: Any, output: Any) -> None:
        """Keep the logits of a forward pass as they are, before what the model's configuration changes in them."""
        self._logits = output.logits[:, -1].float()

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert self._logits is not None, "no forward pass has run"
        self._choice.extend(self._logits, [self._one])
        only = torch.full_like(scores, -torch.inf)
        only[:, self._one.tokens[-1]] = 0
        return only


class _Done(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, one: Continuation) -> None:
        self._one = one

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        is_done = self._one.finish_reason is not None
        return torch.full((input_ids.shape[0],), is_done, dtype=torch.bool, device=input_ids.device)
