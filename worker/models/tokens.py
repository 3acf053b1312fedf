"""From rows of text to padded tensors: one tokenizer call for a chunk, and a row error for each row it cannot take.

A row is one window of tokens, or several where a text is longer than the model takes and is to be seen whole.

Shapes: B windows of a batch, T tokens of its longest window, X whatever a model gives for each token.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jobs.data.rows import Row, RowError, RowErrorCode
from worker.device import one_line
from worker.models.chat_form import ChatForm
from worker.models.limits import Limits, input_embeddings, token_fault
from worker.models.padding import Padding
from worker.models.task_model import Encoded

logger = logging.getLogger(__name__)

Features = dict[str, np.ndarray]
"""A row's token ids and whatever else the tokenizer gives for each token, by the model's names of its inputs."""


class Tokens:
    """A tokenizer with the names of the inputs that a model takes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, pin: bool) -> None:
        """
        Args:
            tokenizer: the model's.
            model: whose `forward` says which inputs it takes.
            pin: whether padded tensors are pinned, for the copy to a GPU.
        """
        self.tokenizer = tokenizer
        parameters = inspect.signature(model.forward).parameters
        self._accepted = None if "input_ids" not in parameters else frozenset(parameters)
        pad = tokenizer.pad_token_id
        self._padding = {"input_ids": pad if pad is not None else (tokenizer.eos_token_id or 0)}
        if "token_type_ids" in (self._accepted or ()):
            self._padding["token_type_ids"] = tokenizer.pad_token_type_id
        self._pin = pin
        self._takes_positions = "position_ids" in parameters
        self._own_side = Padding.LEFT if tokenizer.padding_side == "left" else Padding.RIGHT
        embeddings = input_embeddings(model)
        self.num_ids = None if embeddings is None else embeddings.num_embeddings
        """The number of token ids that the model has a vector for, where that is known."""
        self.padding: Padding | None = None
        """Which rows may share a batch. None until the model was probed: until then, only rows of equal length."""

    @property
    def num_special(self) -> int:
        """The number of special tokens that every row of one text has."""
        return int(self.tokenizer.num_special_tokens_to_add())

    @property
    def pad_token_id(self) -> int:
        """What `collate` fills rows up with."""
        return self._padding["input_ids"]

    @property
    def sides(self) -> tuple[Padding, Padding]:
        """The sides on which rows can be filled up, the tokenizer's own first."""
        return self._own_side, Padding.RIGHT if self._own_side == Padding.LEFT else Padding.LEFT

    @property
    def side(self) -> Padding:
        """The side on which `collate` fills windows up."""
        return self.padding if self.padding in (Padding.LEFT, Padding.RIGHT) else self._own_side

    def encode(
        self,
        rows: Sequence[Row],
        limits: Limits,
        *,
        prefix: str = "",
        form: ChatForm | None = None,
        **options: Any,
    ) -> list[Encoded]:
        """Tokenize rows in one call.

        Args:
            rows: with a `text`, and perhaps a `text_pair`. With the option `is_split_into_words`, a text is a list of
                words, and `word_ids` among a window's features tells whose token each is, or -1.
            limits: how long a row may be.
            prefix: put before each text.
            form: makes each text a chat, with the prefix as its system prompt.
            options: further ones of the tokenizer's call; what they add to its result is in the features too.

        Returns:
            One for each row: a list of one window, or a row error with the code `null_value`, `wrong_type`,
            `invalid_text`, `invalid_messages`, `unknown_token`, `empty_row` or `row_too_long`.
        """
        return [
            self._checked(row, windows, limits)
            for row, windows in zip(rows, self._tokenize(rows, limits, prefix, options, form), strict=True)
        ]

    def take(self, row: Row, ids: Sequence[int], limits: Limits) -> Encoded:
        """Token ids as one window of a row, as they are, or a row error as `encode` gives it."""
        if min(ids) < 0 or (self.num_ids is not None and max(ids) >= self.num_ids):
            message = f"the row has a token id outside 0 to {(self.num_ids or 0) - 1}, which the model does not know"
            return Encoded(row, 0, None, RowError(RowErrorCode.UNKNOWN_TOKEN, message))
        if limits.truncation is not None:
            ids = ids[: limits.max_tokens]
        window = {"input_ids": np.asarray(ids, np.int64)}
        if "token_type_ids" in self.tokenizer.model_input_names:
            window["token_type_ids"] = np.zeros(len(ids), np.int64)
        return self._checked(row, [window], limits)

    def encode_windows(self, rows: Sequence[Row], max_tokens: int, stride: int, **options: Any) -> list[Encoded]:
        """Tokenize rows, those too long into several windows that overlap.

        Args:
            rows: with a `text`.
            max_tokens: most tokens of a window.
            stride: tokens that a window has in common with the one before.
            options: as for `encode`.

        Returns:
            One for each row: its windows, and the tokens of all of them; or a row error.
        """
        limits = Limits(max_tokens, "longest_first")
        options = {**options, "return_overflowing_tokens": True, "stride": stride}
        return [
            self._checked(row, windows, limits)
            for row, windows in zip(rows, self._tokenize(rows, limits, "", options), strict=True)
        ]

    def collate(self, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Pad the windows of a batch to the longest of them, on the side that the model was found to bear.

        Rows that no padding suits come in batches of equal length (`Encoded.shape`). Only the windows of one row may
        then be filled up, on the tokenizer's own side, as its pipeline does for the row alone.

        Returns:
            `input_ids`, `attention_mask` and what else the model takes, each (B, T) int64 on the CPU.
        """
        return self.padded([window for one in batch for window in one.features], self.side)

    def padded(self, windows: Sequence[Features], side: Padding) -> dict[str, torch.Tensor]:
        """Windows as one batch, each filled up on this side; see `collate`.

        On the left, models that take positions are given each token's place in its own row: counted from the first
        column, it would depend on the longest row of the batch.
        """
        names = [name for name in windows[0] if self._takes(name)]
        lengths = [len(window["input_ids"]) for window in windows]
        longest = max(lengths)
        shape = (len(windows), longest)
        padded = {name: np.full(shape, self._padding.get(name, 0), dtype=np.int64) for name in names}
        padded["attention_mask"] = np.zeros(shape, dtype=np.int64)
        for index, (window, length) in enumerate(zip(windows, lengths, strict=True)):
            columns = slice(longest - length, None) if side == Padding.LEFT else slice(length)
            padded["attention_mask"][index, columns] = 1
            for name in names:
                padded[name][index, columns] = window[name]
        if side == Padding.LEFT and self._takes_positions and min(lengths) < longest:
            padded["position_ids"] = np.maximum(padded["attention_mask"].cumsum(axis=1) - 1, 0)
        tensors = {name: torch.from_numpy(values) for name, values in padded.items()}
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if self._pin else tensors

    def _takes(self, name: str) -> bool:
        return name in self.tokenizer.model_input_names if self._accepted is None else name in self._accepted

    def _tokenize(
        self,
        rows: Sequence[Row],
        limits: Limits,
        prefix: str,
        options: Mapping[str, Any],
        form: ChatForm | None = None,
    ) -> list[list[Features] | RowError]:
        """The windows of each row, which are several only where `options` ask for what was cut off."""
        results: dict[int, list[Features] | RowError] = {}
        unusable = _unusable_words if options.get("is_split_into_words") else _unusable
        texts: dict[int, Any] = {}
        for index, row in enumerate(rows):
            error = unusable(row)
            text = row.values.get("text")
            if error is None and form is not None:
                text = form.render(row.values["text"], prefix)
                error = text if isinstance(text, RowError) else None
            elif error is None and isinstance(text, str):
                text = prefix + text
            if error is not None:
                results[index] = error
            else:
                texts[index] = text
        if form is not None:
            options = {**options, "add_special_tokens": False}
        # Rows with and without a second text need a call each. An empty one counts as none, as in a call for one row.
        for has_pair in (False, True):
            good = [index for index in texts if bool(rows[index].values.get("text_pair")) is has_pair]
            pairs = [rows[index].values["text_pair"] for index in good] if has_pair else None
            found = self._call([texts[index] for index in good], pairs, limits, options)
            results.update(zip(good, found, strict=True))
        if form is not None and limits.truncation is not None:
            for windows in results.values():
                if not isinstance(windows, RowError) and len(windows[0]["input_ids"]) == limits.max_tokens:
                    form.restore_end(windows[0]["input_ids"], prefix)
        return [results[index] for index in range(len(rows))]

    def _call(
        self, texts: list[Any], pairs: list[str] | None, limits: Limits, options: Mapping[str, Any]
    ) -> list[list[Features] | RowError]:
        if not texts:
            return []
        cut = limits.truncation is not None and limits.max_tokens is not None
        try:
            encoding = self.tokenizer(
                texts,
                pairs,
                truncation=limits.truncation if cut else False,
                max_length=limits.max_tokens if cut else None,
                padding=False,
                return_attention_mask=False,
                verbose=False,
                **options,
            )
        except (UnicodeError, TypeError, ValueError) as error:
            # One text that cannot be encoded (half a surrogate pair, say) fails the whole call.
            if len(texts) == 1:
                return [RowError(RowErrorCode.INVALID_TEXT, f"the text cannot be tokenized: {one_line(error)}")]
            middle = len(texts) // 2
            return [
                one
                for part in (slice(None, middle), slice(middle, None))
                for one in self._call(texts[part], pairs[part] if pairs else None, limits, options)
            ]
        columns: dict[str, Any] = dict(encoding)
        if options.get("is_split_into_words"):
            columns["word_ids"] = [
                [-1 if word is None else word for word in encoding.word_ids(index)]
                for index in range(len(columns["input_ids"]))
            ]
        owners = columns.pop("overflow_to_sample_mapping", range(len(texts)))
        windows: list[list[Features]] = [[] for _ in texts]
        for index, owner in enumerate(owners):
            windows[owner].append({name: np.asarray(column[index], np.int64) for name, column in columns.items()})
        return list(windows)

    def _checked(self, row: Row, windows: list[Features] | RowError, limits: Limits) -> Encoded:
        if isinstance(windows, RowError):
            return Encoded(row, 0, None, windows)
        num_tokens = sum(len(window["input_ids"]) for window in windows)
        longest = max(len(window["input_ids"]) for window in windows)
        largest_id = max((int(window["input_ids"].max()) for window in windows if len(window["input_ids"])), default=0)
        error = token_fault(longest, largest_id, most_tokens=limits.max_tokens, num_ids=self.num_ids)
        if error is not None:
            return Encoded(row, num_tokens, None, error)
        return Encoded(row, num_tokens, windows, shape=self._shape(row, longest))

    def _shape(self, row: Row, longest: int) -> Hashable:
        """What rows must have in common to share a batch; None where any may."""
        if self.padding in (Padding.LEFT, Padding.RIGHT):
            return None
        return ("row", row.row_index) if self.padding == Padding.ONE_BY_ONE else longest


def behind_tokens(outputs_BTX: torch.Tensor, mask_BT: torch.Tensor, side: Padding) -> torch.Tensor:
    """Outputs for each token, (B, T, X), moved so that what belongs to padding comes last in each row."""
    if side != Padding.LEFT:
        return outputs_BTX
    num_columns = mask_BT.shape[1]
    padding_B1 = num_columns - mask_BT.sum(dim=1, keepdim=True)
    columns_BT = (torch.arange(num_columns, device=mask_BT.device) + padding_B1) % num_columns
    return outputs_BTX.gather(1, columns_BT.unsqueeze(-1).expand(-1, -1, outputs_BTX.shape[-1]))


def _unusable(row: Row) -> RowError | None:
    for name in ("text", "text_pair"):
        value = row.values.get(name)
        if value is None and name == "text":
            return RowError(RowErrorCode.NULL_VALUE, "the row has no text")
        if value is not None and not isinstance(value, str):
            return RowError(RowErrorCode.WRONG_TYPE, f"{name} must be a text, not a {type(value).__name__}")
    return None


def _unusable_words(row: Row) -> RowError | None:
    words = row.values.get("text")
    if words is None:
        return RowError(RowErrorCode.NULL_VALUE, "the row has no text")
    if not isinstance(words, list):
        kind = "a text" if isinstance(words, str) else f"a {type(words).__name__}"
        return RowError(
            RowErrorCode.WRONG_TYPE, f"text must be a list of words, as is_split_into_words is set, not {kind}"
        )
    for number, word in enumerate(words):
        if not isinstance(word, str):
            return RowError(RowErrorCode.WRONG_TYPE, f"text[{number}] must be a word, not a {type(word).__name__}")
    return None


def to_device(inputs: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Copies of a batch's tensors on the device; from pinned memory without waiting for the copy."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
