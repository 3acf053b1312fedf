"""Token classification: entities with every aggregation strategy of the pipeline, whose own methods form them.

An output is the pipeline's list of entities. The pipeline cuts a text that is too long for the model and says nothing;
here such a row is an error, unless `truncation` asks for the cut or `stride` for overlapping windows.

Shapes: W windows of a batch, one for each row unless `stride` is set; T tokens; L labels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from transformers import AutoModelForTokenClassification, TokenClassificationPipeline

from jobs.errors import InvalidSpec
from jobs.parameters import check_parameters
from jobs.rows import Row
from worker.inference.tasks.interface import NOT_FINITE, Encoded
from worker.inference.tasks.loading import ModelFolder, load_tokenizer, load_weights, memory_bytes
from worker.inference.tasks.tokens import Features, Tokens, longest_row, resolve_limits, to_device

TASK = "token-classification"
_ENTITIES = ("aggregation_strategy", "ignore_labels", "stride")


class TokenClassification:
    """A model with a token classification head."""

    def __init__(
        self, source: ModelFolder, parameters: Mapping[str, Any], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """
        Args:
            source: the model's files.
            parameters: of the job.
            device: where it computes.
            dtype: in which it computes.

        Raises:
            InvalidModel: it cannot be loaded, or has no such head.
            InvalidSpec: a parameter is wrong.
        """
        tokenizer = load_tokenizer(source)
        self._model = load_weights(source, AutoModelForTokenClassification, task=TASK, device=device, dtype=dtype)
        self._tokens = Tokens(tokenizer, self._model, pin=device.type == "cuda")
        self._device = device
        self._longest = longest_row(self._model, tokenizer)
        # A tokenizer of its own: `decode` runs while `encode` uses the other one, and one cannot do both at once.
        self._pipeline = TokenClassificationPipeline(
            model=self._model, tokenizer=copy.deepcopy(tokenizer), device=device, task=TASK
        )
        self._options = {"return_special_tokens_mask": True, "return_offsets_mapping": tokenizer.is_fast}
        self.memory_bytes = memory_bytes(self._model)
        self._configure(parameters)

    def with_parameters(self, parameters: Mapping[str, Any]) -> Self:
        """See `TaskModel`."""
        other = copy.copy(self)
        other._configure(parameters)
        return other

    def _configure(self, parameters: Mapping[str, Any]) -> None:
        check_parameters(TASK, parameters)
        self._limits = resolve_limits(parameters, self._longest)
        self._stride: int | None = parameters.get("stride")
        chosen = {name: parameters[name] for name in _ENTITIES if parameters.get(name) is not None}
        if self._stride is not None:
            self._check_stride(self._stride, parameters)
        try:
            _, _, self._postprocess = self._pipeline._sanitize_parameters(**chosen)
        except ValueError as error:
            param = "parameters.aggregation_strategy"
            raise InvalidSpec(f"{param}: this model's tokenizer is slow: {error}", param=param) from error

    def _check_stride(self, stride: int, parameters: Mapping[str, Any]) -> None:
        param = "parameters.stride"
        if parameters.get("aggregation_strategy") in (None, "none"):
            raise InvalidSpec(f"{param}: goes with an aggregation_strategy other than none", param=param)
        if not self._tokens.tokenizer.is_fast:
            raise InvalidSpec(f"{param}: this model's tokenizer is slow and cannot cut windows", param=param)
        room = (self._limits.max_tokens or stride + 1) - self._tokens.tokenizer.num_special_tokens_to_add()
        if stride >= room:
            raise InvalidSpec(f"{param}: must be less than the {room} tokens of text in a window", param=param)

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """See `TaskModel`."""
        if self._stride is not None and self._limits.max_tokens is not None:
            return self._tokens.encode_windows(rows, self._limits.max_tokens, self._stride, **self._options)
        return self._tokens.encode(rows, self._limits, **self._options)

    def collate(self, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """See `TaskModel`."""
        return self._tokens.collate(batch)

    def forward(self, collated: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `TaskModel`.

        Returns:
            Logits, (W, T, L) float32.
        """
        logits_WTL: torch.Tensor = self._model(**to_device(collated, self._device)).logits
        return logits_WTL.float()

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

    @staticmethod
    def _window(row: Row, window: Features, logits_TL: torch.Tensor, *, is_first: bool) -> dict[str, Any]:
        """What the pipeline's own forward hands to its `postprocess`."""
        offsets = window.get("offset_mapping")
        return {
            "logits": logits_TL.unsqueeze(0),
            "sentence": row.values["text"] if is_first else None,
            "input_ids": torch.from_numpy(window["input_ids"]).unsqueeze(0),
            "special_tokens_mask": torch.from_numpy(window["special_tokens_mask"]).unsqueeze(0),
            "offset_mapping": None if offsets is None else torch.from_numpy(offsets).unsqueeze(0),
        }
