"""Token classification: entities with every aggregation strategy of the pipeline, built by the pipeline's methods.

An output is the pipeline's list of entities. The pipeline silently truncates a text that is too long for the model;
here such a row is an error, unless `truncation` requests truncation or `stride` overlapping windows. With
`is_split_into_words`, a row's text is a list of words, and the offsets of entities refer to the joined words.

Shapes: W windows of a batch, one for each row unless `stride` is set; T tokens; L labels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Self

import torch
from transformers import AutoModelForTokenClassification, TokenClassificationPipeline

from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.errors import InvalidSpec
from jobs.specs.parameters.text_tasks import TokenClassificationParameters
from worker.inference.tasks.padding_probe import probe_padding
from worker.models.load import ModelFolder, load_tokenizer, load_weights, memory_bytes
from worker.models.stateless import is_stateless
from worker.models.task_model import NOT_FINITE, Encoded
from worker.models.texts.limits import longest_row, resolve_limits
from worker.models.texts.packing import call_model
from worker.models.texts.padding import Padding, behind_tokens
from worker.models.texts.tokens import Features, Tokens, to_device
from worker.models.transformers_internals import sanitized

TASK = "token-classification"
_UNEXPECTED_WORDS = RowError(
    RowErrorCode.WRONG_TYPE,
    "text must be a text, not a list; for lists of words, set the parameter is_split_into_words",
)
_ENTITIES = ("aggregation_strategy", "ignore_labels", "stride")


class TokenClassification:
    """A model with a token classification head."""

    def __init__(
        self,
        source: ModelFolder,
        parameters: TokenClassificationParameters,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """
        Args:
            source: The model's files.
            parameters: The parameters of the job.
            device: The device that the model computes on.
            dtype: The dtype that the model computes in.

        Raises:
            InvalidModel: The model cannot be loaded, or has no such head.
            InvalidSpec: A parameter is invalid.
        """
        tokenizer = load_tokenizer(source)
        self.model = load_weights(source, AutoModelForTokenClassification, task=TASK, device=device, dtype=dtype)
        self.tokens = Tokens(tokenizer, self.model, pin=device.type == "cuda")
        self._device = device
        self.is_stateless = is_stateless(self.model)
        self._longest = longest_row(self.model, tokenizer)
        # A separate tokenizer: `decode` runs while `encode` uses the other one, and a tokenizer is not thread-safe.
        self._pipeline = TokenClassificationPipeline(
            model=self.model, tokenizer=copy.deepcopy(tokenizer), device=device, task=TASK
        )
        self.memory_bytes = memory_bytes(self.model)
        self._configure(parameters)

    def with_parameters(self, parameters: TokenClassificationParameters) -> Self:
        """See `TaskModel`."""
        other = copy.copy(self)
        other._configure(parameters)
        return other

    def _configure(self, parameters: TokenClassificationParameters) -> None:
        self._limits = resolve_limits(parameters, self._longest, least=self.tokens.num_special)
        self._stride = parameters.stride
        options = {name: value for name, value in parameters.given().items() if name in _ENTITIES}
        self._delimiter: str | None = None
        if parameters.is_split_into_words:
            self._check_words()
            self._delimiter = parameters.delimiter
        self._options: dict[str, Any] = {
            "return_special_tokens_mask": True,
            "return_offsets_mapping": self.tokens.tokenizer.is_fast,
        }
        if self._delimiter is not None:
            self._options["is_split_into_words"] = True
        if self._stride is not None:
            self._check_stride(self._stride)
        try:
            _, _, self._postprocess = sanitized(self._pipeline, options)
        except ValueError as error:
            param = "parameters.aggregation_strategy"
            raise InvalidSpec(f"{param}: this model has a slow tokenizer: {error}", param=param) from error

    def _check_words(self) -> None:
        param = "parameters.is_split_into_words"
        if not self.tokens.tokenizer.is_fast:
            raise InvalidSpec(f"{param}: this model has a slow tokenizer, which does not accept words", param=param)

    def _check_stride(self, stride: int) -> None:
        param = "parameters.stride"
        if not self.tokens.tokenizer.is_fast:
            raise InvalidSpec(
                f"{param}: this model has a slow tokenizer, which cannot split texts into windows", param=param
            )
        room = (self._limits.max_tokens or stride + 1) - self.tokens.tokenizer.num_special_tokens_to_add()
        if stride >= room:
            raise InvalidSpec(f"{param}: must be less than the {room} tokens of text in a window", param=param)

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """See `TaskModel`."""
        if self._delimiter is None:
            lists = {index for index, row in enumerate(rows) if isinstance(row.values.get("text"), list)}
            if lists:
                rest = iter(self.encode([row for index, row in enumerate(rows) if index not in lists]))
                return [
                    Encoded(row, 0, None, _UNEXPECTED_WORDS) if index in lists else next(rest)
                    for index, row in enumerate(rows)
                ]
        if self._stride is not None and self._limits.max_tokens is not None:
            return self.tokens.encode_windows(rows, self._limits.max_tokens, self._stride, **self._options)
        return self.tokens.encode(rows, self._limits, **self._options)

    def collate(self, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """See `TaskModel`."""
        return self.tokens.collate(batch)

    def forward(self, collated: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `TaskModel`.

        Returns:
            Logits, (W, T, L) float32.
        """
        inputs = to_device(collated, self._device)
        if self.tokens.padding == Padding.ONE_BY_ONE:  # the windows of one row, which must be computed separately
            num_windows = len(inputs["input_ids"])
            alone = [{name: one[at : at + 1] for name, one in inputs.items()} for at in range(num_windows)]
            logits_WTL = torch.cat([self._logits(one) for one in alone])
        else:
            logits_WTL = self._logits(inputs)
        return behind_tokens(logits_WTL, inputs["attention_mask"], self.tokens.side).float()

    def probe_padding(self, *, packs: bool = False) -> Padding:
        """See `PadsRows`."""
        return probe_padding(self.tokens, self.model, self._logits, longest=self._longest, packs=packs)

    def _logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits_WTL: torch.Tensor = call_model(self.model, inputs).logits
        return logits_WTL

    def decode(self, batch: Sequence[Encoded], outputs: torch.Tensor) -> list[Any]:
        """See `TaskModel`."""
        logits_WTL = iter(outputs.cpu())
        return [self._entities(one, [next(logits_WTL) for _ in one.features]) for one in batch]

    def _entities(self, one: Encoded, logits: Sequence[torch.Tensor]) -> Any:
        windows = []
        for index, (window, logits_TL) in enumerate(zip(one.features, logits, strict=True)):
            cut_TL = logits_TL[: len(window["input_ids"])]
            if not bool(cut_TL.isfinite().all()):
                return NOT_FINITE
            windows.append(self._window(one.row, window, cut_TL, is_first=index == 0))
        entities = self._pipeline.postprocess(windows, **self._postprocess)
        return [{**entity, "score": float(entity["score"])} for entity in entities]

    def _window(self, row: Row, window: Features, logits_TL: torch.Tensor, *, is_first: bool) -> dict[str, Any]:
        """One window's input to the pipeline's `postprocess`."""
        offsets = window.get("offset_mapping")
        text = row.values["text"]
        words: dict[str, Any] = {}
        if self._delimiter is not None:
            ends = list(accumulate(len(word) + len(self._delimiter) for word in text))
            words["word_to_chars_map"] = [
                (end - len(word) - len(self._delimiter), end - len(self._delimiter))
                for end, word in zip(ends, text, strict=True)
            ]
            words["word_ids"] = [None if word < 0 else word for word in window["word_ids"].tolist()]
            text = self._delimiter.join(text)
        return {
            **words,
            "logits": logits_TL.unsqueeze(0),
            "sentence": text if is_first else None,
            "input_ids": torch.from_numpy(window["input_ids"]).unsqueeze(0),
            "special_tokens_mask": torch.from_numpy(window["special_tokens_mask"]).unsqueeze(0),
            "offset_mapping": None if offsets is None else torch.from_numpy(offsets).unsqueeze(0),
        }
