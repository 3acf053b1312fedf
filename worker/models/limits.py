"""How many tokens of a row a model takes, and which token ids it knows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from jobs.data.rows import RowError, RowErrorCode
from jobs.errors import InvalidSpec
from jobs.specs.parameters.text_tasks import TokenizerParameters

_UNSET_LENGTH = 1_000_000_000
"""Lengths from here on mean "unknown": tokenizers then have a `model_max_length` of 1e30."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a row may be, and what happens to a longer one."""

    max_tokens: int | None
    """The most tokens in a row; None if the model has no limit."""
    truncation: str | None
    """How a longer row is truncated, by transformers' name; None makes it a row error."""


def longest_row(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The most tokens that a model and its tokenizer accept, or None if neither has a limit."""
    limits = [tokenizer.model_max_length, position_limit(model)]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < _UNSET_LENGTH]
    return min(known, default=None)


def position_limit(model: PreTrainedModel) -> int | None:
    """The number of tokens for which a model has positions, or None if it has no such limit."""
    config: PretrainedConfig = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    # The RoBERTa family counts positions from the padding id + 1, so the first entries of its table are unused.
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        padding = getattr(module, "padding_idx", None)
        if isinstance(table, torch.nn.Embedding) and isinstance(padding, int):
            return positions - padding - 1
    return positions


def resolve_limits(parameters: TokenizerParameters, longest: int | None, *, least: int) -> Limits:
    """Resolve the parameters `truncation` and `max_length` for a model.

    Args:
        parameters: The job's.
        longest: The model's own limit.
        least: Number of special tokens that every row has; they cannot be truncated.

    Raises:
        InvalidSpec: `max_length` is too small for any row.
    """
    said, max_length = parameters.truncation, parameters.max_length
    if said is None:
        said = max_length is not None  # as in tokenizers: a length alone implies truncation
    truncation = "longest_first" if said is True else str(said)
    if said is False or truncation == "do_not_truncate":
        return Limits(longest, None)
    if max_length is not None and max_length < least:
        param = "parameters.max_length"
        raise InvalidSpec(f"{param}: must be at least {least}, as the model's own tokens count too", param=param)
    return Limits(min((limit for limit in (max_length, longest) if limit is not None), default=None), truncation)


def input_embeddings(model: PreTrainedModel) -> torch.nn.Embedding | None:
    """A model's token embeddings, or None if it has none: CANINE hashes characters instead."""
    try:
        embeddings = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):  # some models with their own code do not define it
        return None
    return embeddings if isinstance(embeddings, torch.nn.Embedding) else None


def token_fault(num_tokens: int, largest_id: int, *, most_tokens: int | None, num_ids: int | None) -> RowError | None:
    """The row error if a model cannot compute a row's tokens, else None.

    Args:
        num_tokens: Number of tokens of the row's longest window.
        largest_id: The largest token id of the row.
        most_tokens: The most tokens that the model accepts, if known.
        num_ids: Number of token ids for which the model has an embedding, if known.
    """
    if not num_tokens:
        return RowError(RowErrorCode.EMPTY_ROW, "the text has no tokens")
    if most_tokens is not None and num_tokens > most_tokens:
        message = f"the row has {num_tokens} tokens, more than the {most_tokens} that the model takes"
        return RowError(RowErrorCode.ROW_TOO_LONG, message)
    # On a GPU, an id beyond the embedding table makes the whole process unusable, not only the row.
    if num_ids is not None and largest_id >= num_ids:
        message = "the tokenizer has a token for this text that the model does not know; they are not of one model"
        return RowError(RowErrorCode.UNKNOWN_TOKEN, message)
    return None
