"""Rows with several inputs, like OpenAI's `input`: a text, a list of texts, token ids, or a list of token id lists.

Each input becomes one window of its row's features, so that the model computes the inputs as if they were rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch

from jobs.data.rows import Row, RowError, RowErrorCode
from worker.inference.pipelines.joined_items import join, shape_of
from worker.models.task_model import Encoded
from worker.models.texts.chat_form import ChatForm
from worker.models.texts.limits import Limits
from worker.models.texts.padding import ANY_LENGTHS, Padding
from worker.models.texts.tokens import Features, Tokens

MOST_INPUTS = 2048
"""Most inputs in one row, as in OpenAI's API."""
_MOST_TOKENS = 32_768
"""Most padded tokens that are computed at once, since a single row may exceed a batch's budget."""


def encode_many(
    tokens: Tokens, rows: Sequence[Row], limits: Limits, *, prefix: str = "", form: ChatForm | None = None
) -> list[Encoded]:
    """Tokenize all inputs of all rows in one call.

    Args:
        tokens: The model's tokenizer.
        rows: Rows whose `text` has one of the four forms. Token ids are used unchanged, without special tokens.
        limits: Limits of each input.
        prefix: Text that is put before each text.
        form: Renders each text as a chat.

    Returns:
        One entry for each row: a window for each input, in order, or a row error with one of the codes of
        `Tokens.encode`, `empty_input` or `too_many_inputs`.
    """
    inputs = [read_inputs(row, has_prefix=bool(prefix)) for row in rows]
    texts = [
        Row(row.row_index, None, {"text": one})
        for row, found in zip(rows, inputs, strict=True)
        if not isinstance(found, RowError)
        for one in found
        if isinstance(one, str)
    ]
    tokenized = iter(tokens.encode(texts, limits, prefix=prefix, form=form))

    def windows(row: Row, one: str | list[int]) -> Encoded:
        return next(tokenized) if isinstance(one, str) else tokens.take(row, one, limits)

    return [
        Encoded(row, 0, None, found) if isinstance(found, RowError) else joined(row, [windows(row, x) for x in found])
        for row, found in zip(rows, inputs, strict=True)
    ]


def by_row(batch: Sequence[Encoded], outputs: Sequence[Any]) -> list[Any]:
    """Group the outputs of windows into a list for each row. If a window has an error, the first one is the row's."""
    places = pairwise(accumulate((len(one.features) for one in batch), initial=0))
    found = [list(outputs[start:stop]) for start, stop in places]
    return [next((one for one in row if isinstance(one, RowError)), row) for row in found]


@dataclass(frozen=True, slots=True)
class Parts:
    """Windows of a batch, split into parts that can be computed together."""

    batches: Sequence[Mapping[str, torch.Tensor]]
    """Input tensors, such as token ids of (B, T), with at most `_MOST_TOKENS` tokens unless it is a single window."""
    places: Sequence[int]
    """For each window of `batches`, in order, its index among the windows of all rows."""


def collate_inputs(tokens: Tokens, batch: Sequence[Encoded]) -> Parts:
    """Pad the inputs of a batch's rows as if each input were a row, so that other inputs do not change its output."""
    windows: list[Features] = [window for one in batch for window in one.features]
    lengths = [len(window["input_ids"]) for window in windows]
    if tokens.padding in ANY_LENGTHS:
        groups = [list(range(len(windows)))]
    elif tokens.padding == Padding.ONE_BY_ONE:
        groups = [[place] for place in range(len(windows))]
    else:
        groups = [[p for p, length in enumerate(lengths) if length == one] for one in sorted(set(lengths))]
    parts: list[list[int]] = []
    for group in groups:
        at_once = max(1, _MOST_TOKENS // max(lengths[place] for place in group))
        parts += [group[start : start + at_once] for start in range(0, len(group), at_once)]
    return Parts(
        [tokens.joined([windows[place] for place in part]) for part in parts],
        [place for part in parts for place in part],
    )


def collate_items(batch: Sequence[Encoded], *, pin: bool) -> Parts:
    """Join those inputs of a batch's rows whose tensors have equal shapes, without padding.

    Args:
        batch: Rows whose features are a list of items, see `pipelines.joining`, one for each input.
        pin: Whether to join into pinned memory.
    """
    items = [item for one in batch for item in one.features]
    alike: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        alike.setdefault(shape_of(item), []).append(place)
    parts: list[list[int]] = []
    for places in alike.values():
        ids = items[places[0]].get("input_ids")
        at_once = len(places) if ids is None else max(1, _MOST_TOKENS // ids.shape[-1])
        parts += [places[start : start + at_once] for start in range(0, len(places), at_once)]
    batches = [items[part[0]] if len(part) == 1 else join([items[place] for place in part]) for part in parts]
    if pin:
        batches = [{name: tensor.pin_memory() for name, tensor in each.items()} for each in batches]
    return Parts(batches, [place for part in parts for place in part])


def forward_inputs(parts: Parts, forward: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]) -> torch.Tensor:
    """Compute the vectors of all windows, in the order of the rows."""
    found = torch.cat([forward(batch) for batch in parts.batches])
    if list(parts.places) == list(range(len(parts.places))):
        return found
    order = sorted(range(len(parts.places)), key=lambda at: parts.places[at])
    return found[torch.tensor(order).to(found.device, non_blocking=True)]


def read_inputs(row: Row, *, has_prefix: bool) -> list[str | list[int]] | RowError:
    """A row's inputs, each a text or token ids, or its error."""
    value = row.values.get("text")
    if value is None:
        return RowError(RowErrorCode.NULL_VALUE, "the row has no text")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return _wrong_type(value)
    if not value:
        return RowError(RowErrorCode.EMPTY_INPUT, "the row's list of inputs is empty")
    inputs = [value] if _is_ids(value) else value
    if len(inputs) > MOST_INPUTS:
        return RowError(RowErrorCode.TOO_MANY_INPUTS, f"the row has {len(inputs)} inputs, more than {MOST_INPUTS}")
    for one in inputs:
        if not isinstance(one, str) and not (isinstance(one, list) and _is_ids(one)):
            return _wrong_type(one)
        if not isinstance(one, str) and has_prefix:
            return RowError(
                RowErrorCode.WRONG_TYPE, "token ids cannot be used if the model puts a prompt before each text"
            )
    return inputs


def _is_ids(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(one, int) and not isinstance(one, bool) for one in value)


def _wrong_type(value: object) -> RowError:
    if isinstance(value, list):
        return RowError(RowErrorCode.WRONG_TYPE, "an input must be a text or a list of at least one token id")
    return RowError(
        RowErrorCode.WRONG_TYPE, f"an input must be a text or a list of token ids, not a {type(value).__name__}"
    )


def joined(row: Row, parts: Sequence[Encoded]) -> Encoded:
    """One entry for a row of which each input was encoded as if it were a row."""
    error = next((part.error for part in parts if part.error is not None), None)
    if error is not None:
        return Encoded(row, 0, None, error)
    features: list[Features] = [window for part in parts for window in part.features]
    return Encoded(row, sum(part.num_tokens for part in parts), features)
