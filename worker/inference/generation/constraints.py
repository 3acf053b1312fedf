"""Tokens that a model's generation_config.json forbids or forces, by transformers' own classes in their order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import (
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    LogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)


def constraints_of(
    config: GenerationConfig, *, num_prompt: int, max_new_tokens: int, device: torch.device
) -> tuple[LogitsProcessor, ...]:
    """The constraints that a model's configuration sets for one row, as `generate` applies them.

    Args:
        config: The model's generation configuration.
        num_prompt: Number of prompt tokens.
        max_new_tokens: Most tokens to generate.
        device: Device of the logits.
    """
    ends, stop = config.eos_token_id, num_prompt + max_new_tokens
    found: list[LogitsProcessor] = []
    if config.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.bad_words_ids:
        found.append(NoBadWordsLogitsProcessor(config.bad_words_ids, ends))
    if config.min_length and ends is not None:
        found.append(MinLengthLogitsProcessor(config.min_length, ends, device=device))
    if config.min_new_tokens and ends is not None:
        found.append(MinNewTokensLengthLogitsProcessor(num_prompt, config.min_new_tokens, ends, device=device))
    if config.forced_eos_token_id is not None:
        found.append(ForcedEOSTokenLogitsProcessor(stop, config.forced_eos_token_id, device=device))
    if config.suppress_tokens:
        found.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device=device))
    if config.begin_suppress_tokens:
        found.append(SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, num_prompt, device=device))
    return tuple(found)


def constrain(
    logits_BV: torch.Tensor, constraints: Sequence[Sequence[LogitsProcessor]], seen: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Apply each row's constraints to its logits; returns a copy if any row has a constraint.

    Args:
        logits_BV: Logits, (B, V).
        constraints: The constraints of each row.
        seen: Prompt and generated tokens of each row.
    """
    places = [place for place, each in enumerate(constraints) if each]
    if not places:
        return logits_BV
    logits_BV = logits_BV.clone()
    for place in places:
        tokens_1T = torch.tensor([list(seen[place])], device=logits_BV.device)
        scores_1V = logits_BV[place : place + 1]
        for constraint in constraints[place]:
            scores_1V = constraint(tokens_1T, scores_1V)
        logits_BV[place] = scores_1V[0]
    return logits_BV
