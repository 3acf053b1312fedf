"""From rows of text to padded tensors: one tokenizer call per chunk, and a row error for each row that fails.

A row is one window of tokens, or several if its text is longer than the model accepts and must not be truncated.

Shapes: B windows of a batch, T tokens of its longest window.
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
from jobs.messages import one_line
from worker.models.task_model import Encoded
from worker.models.texts.chat_form import ChatForm
from worker.models.texts.limits import Limits, first_position, num_token_ids, outside_vocabulary, token_error
from worker.models.texts.packing import layout_of
from worker.models.texts.padding import ANY_LENGTHS, Padding
from worker.models.texts.text_fields import unusable_text, unusable_words

logger = logging.getLogger(__name__)

Features = dict[str, np.ndarray]
"""A window's token ids and the tokenizer's other outputs for each token, by the names of the model's inputs."""


class Tokens:
    """A tokenizer with the names of the inputs that a model takes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, pin: bool) -> None:
        """
        Args:
            tokenizer: The model's tokenizer.
            model: The model; the signature of its `forward` gives the names of its inputs.
            pin: Whether padded tensors are in pinned memory, for the copy to a GPU.
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
        self._first_position = first_position(model)
        self._own_side = Padding.LEFT if tokenizer.padding_side == "left" else Padding.RIGHT
        self.num_ids = num_token_ids(model)
        """Number of token ids for which the model has an embedding, if known."""
        self.padding: Padding | None = None
        """Which rows may share a batch. None until the model is probed: until then, only rows of equal length."""

    @property
    def num_special(self) -> int:
        """The number of special tokens that every row of one text has."""
        return int(self.tokenizer.num_special_tokens_to_add())

    @property
    def pad_token_id(self) -> int:
        """The token id that `collate` pads with."""
        return self._padding["input_ids"]

    @property
    def sides(self) -> tuple[Padding, Padding]:
        """The sides on which rows can be padded, the tokenizer's own first."""
        return self._own_side, Padding.RIGHT if self._own_side == Padding.LEFT else Padding.LEFT

    @property
    def side(self) -> Padding:
        """The side on which `collate` pads windows; a packed batch has its padding on the right before and after."""
        if self.padding == Padding.PACKED:
            return Padding.RIGHT
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
            rows: Rows with a `text` and perhaps a `text_pair`. With the option `is_split_into_words`, a text is a list
                of words, and a window's feature `word_ids` is the index of each token's word, or -1.
            limits: How long a row may be.
            prefix: Text that is put before each text.
            form: Renders each text as a chat, with the prefix as its system prompt.
            options: Further options of the tokenizer's call; outputs that they add are in the features too.

        Returns:
            One entry for each row: a list of one window, or a row error with the code `null_value`, `wrong_type`,
            `invalid_text`, `invalid_messages`, `unknown_token`, `empty_row` or `row_too_long`.
        """
        return [
            self._checked(row, windows, limits)
            for row, windows in zip(rows, self._tokenize(rows, limits, prefix, options, form), strict=True)
        ]

    def take(self, row: Row, ids: Sequence[int], limits: Limits) -> Encoded:
        """Use token ids unchanged as the only window of a row. Row errors are those of `encode`."""
        error = outside_vocabulary(ids, self.num_ids)
        if error is not None:
            return Encoded(row, 0, None, error)
        if limits.truncation is not None:
            ids = ids[: limits.max_tokens]
        window = {"input_ids": np.asarray(ids, np.int64)}
        if "token_type_ids" in self.tokenizer.model_input_names:
            window["token_type_ids"] = np.zeros(len(ids), np.int64)
        return self._checked(row, [window], limits)

    def encode_windows(self, rows: Sequence[Row], max_tokens: int, stride: int, **options: Any) -> list[Encoded]:
        """Tokenize rows; a row that is too long gets several overlapping windows.

        Args:
            rows: Rows with a `text`.
            max_tokens: Most tokens in a window.
            stride: Number of tokens that a window shares with the one before.
            options: See `encode`.

        Returns:
            One entry for each row: its windows and their total number of tokens, or a row error.
        """
        limits = Limits(max_tokens, "longest_first")
        options = {**options, "return_overflowing_tokens": True, "stride": stride}
        return [
            self._checked(row, windows, limits)
            for row, windows in zip(rows, self._tokenize(rows, limits, "", options), strict=True)
        ]

    def collate(self, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Pad the windows of a batch to the longest one, on the side that the probe found to be safe.

        If no side is safe, batches have rows of equal length only (`Encoded.shape`). Then only the windows of a single
        row may need padding, on the tokenizer's own side, as in the pipeline's call for that row alone.

        Returns:
            `input_ids`, `attention_mask` and the model's other inputs, each (B, T) int64 on the CPU.
        """
        return self.joined([window for one in batch for window in one.features])

    def joined(self, windows: Sequence[Features]) -> dict[str, torch.Tensor]:
        """Combine windows into one batch in the way that the probe found to be safe; see `collate`."""
        return self.packed(windows) if self.padding == Padding.PACKED else self.padded(windows, self.side)

    def packed(self, windows: Sequence[Features]) -> dict[str, torch.Tensor]:
        """Combine windows into one batch that is computed without padding, and add its layout for `call_model`."""
        layout = layout_of([window["input_ids"] for window in windows], first_position=self._first_position)
        return {**self.padded(windows, Padding.RIGHT), **self._tensors(layout)}

    def padded(self, windows: Sequence[Features], side: Padding) -> dict[str, torch.Tensor]:
        """Combine windows into one batch, padded on this side; see `collate`.

        With padding on the left, models that accept position ids get each token's position in its own row: counted from
        the first column, positions would depend on the longest row of the batch.
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
        return self._tensors(padded)

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
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
        """The windows of each row. There are several only if `options` request the overflowing tokens."""
        results: dict[int, list[Features] | RowError] = {}
        unusable = unusable_words if options.get("is_split_into_words") else unusable_text
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
        # Rows with and without a second text need separate calls. An empty one counts as none, as in the pipeline.
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
        error = token_error(longest, largest_id, most_tokens=limits.max_tokens, num_ids=self.num_ids)
        if error is not None:
            return Encoded(row, num_tokens, None, error)
        return Encoded(row, num_tokens, windows, shape=self._shape(row, longest))

    def _shape(self, row: Row, longest: int) -> Hashable:
        """Rows share a batch only if this value is equal; None if any rows may."""
        if self.padding in ANY_LENGTHS:
            return None
        return ("row", row.row_index) if self.padding == Padding.ONE_BY_ONE else longest


def to_device(inputs: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Copy a batch's tensors to the device. From pinned memory, this does not wait for the copy."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
