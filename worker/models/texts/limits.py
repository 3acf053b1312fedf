"""How many tokens of a row a model takes, and which token ids it knows."""

from __future__ import annotations

from collections.abc import Sequence
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
    return positions - first_position(model)


def first_position(model: PreTrainedModel) -> int:
    """The position of a row's first token: the RoBERTa family counts from the padding id + 1, other models from 0."""
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        padding = getattr(module, "padding_idx", None)
        if isinstance(table, torch.nn.Embedding) and isinstance(padding, int):
            return padding + 1
    return 0


def resolve_limits(parameters: TokenizerParameters, longest: int | None, *, least: int) -> Limits:
    """Resolve the parameters `truncation` and `max_length` for a model.

    Args:
        parameters: The job's.
        longest: The model's own limit.
        least: Number of special tokens that every row has; they cannot be truncated.

    Raises:
        InvalidSpec: `max_length` is too small for any row.
    """
    value, max_length = parameters.truncation, parameters.max_length
    if value is None:
        value = max_length is not None  # as in tokenizers: a length alone implies truncation
    truncation = "longest_first" if value is True else str(value)
    if value is False or truncation == "do_not_truncate":
        return Limits(longest, None)
    if max_length is not None and max_length < least:
        param = "parameters.max_length"
        raise InvalidSpec(
            f"{param}: must be at least {least}, because the model's special tokens count too", param=param
        )
    return Limits(min((limit for limit in (max_length, longest) if limit is not None), default=None), truncation)


def input_embeddings(model: PreTrainedModel) -> torch.nn.Embedding | None:
    """A model's token embeddings, or None if it has none: CANINE hashes characters instead."""
    try:
        embeddings = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):  # some models with their own code do not define it
        return None
    return embeddings if isinstance(embeddings, torch.nn.Embedding) else None


def num_token_ids(model: PreTrainedModel) -> int | None:
    """Number of token ids for which a model has an embedding, or None if it has no token embeddings."""
    embeddings = input_embeddings(model)
    return None if embeddings is None else embeddings.num_embeddings


def outside_vocabulary(ids: Sequence[int], num_ids: int | None) -> RowError | None:
    """The row error for token ids of a row that the model does not have, else None."""
    if min(ids) >= 0 and (num_ids is None or max(ids) < num_ids):
        return None
    limit = "below 0" if num_ids is None else f"outside 0 to {num_ids - 1}"
    message = f"the row has a token id {limit}, which the model does not have"
    return RowError(RowErrorCode.UNKNOWN_TOKEN, message)


def token_error(num_tokens: int, largest_id: int, *, most_tokens: int | None, num_ids: int | None) -> RowError | None:
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
        message = f"the row has {num_tokens} tokens, more than the {most_tokens} that the model accepts"
        return RowError(RowErrorCode.ROW_TOO_LONG, message)
    # On a GPU, an id beyond the embedding table makes the whole process unusable, not only the row.
    if num_ids is not None and largest_id >= num_ids:
        message = (
            "the tokenizer has a token for this text that the model does not have; use the tokenizer that belongs to "
            "the model"
        )
        return RowError(RowErrorCode.UNKNOWN_TOKEN, message)
    return None


def longest_pipeline_row(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """Most token ids of a row that a model accepts, or None if unknown; with a tokenizer, its limit counts too.

    If a pipeline truncates texts, or replaces an image by many ids, its tokenizer's own limit does not apply.
    """
    try:
        return position_limit(model) if tokenizer is None else longest_row(model, tokenizer)
    except ValueError:  # a model with several text inputs has no single limit
        return None
