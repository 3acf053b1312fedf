"""Text classification: one label or several, regression, and pairs of sentences.

An output is what `pipeline("text-classification")(text, **parameters)` returns for one text: a list of
`{"label", "score"}`, only the best label unless `top_k` is set. It is a list for a pair of sentences too.

Shapes: B rows, L labels.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from jobs.data.rows import Row
from jobs.specs.parameters.text_tasks import TextClassificationParameters
from worker.inference.tasks.multi_input import Parts, by_row, collate_inputs, encode_many, forward_inputs
from worker.inference.tasks.padding_probe import probe_padding
from worker.models.load import ModelFolder, load_tokenizer, load_weights, memory_bytes
from worker.models.stateless import is_stateless
from worker.models.task_model import NOT_FINITE, Encoded
from worker.models.texts.limits import longest_row, resolve_limits
from worker.models.texts.packing import call_model
from worker.models.texts.padding import Padding
from worker.models.texts.tokens import Tokens, to_device

TASK = "text-classification"
_NO_TOKEN = -1


class TextClassification:
    """A model with a sequence classification head."""

    def __init__(
        self, source: ModelFolder, parameters: TextClassificationParameters, *, device: torch.device, dtype: torch.dtype
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
        self.model = load_weights(source, AutoModelForSequenceClassification, task=TASK, device=device, dtype=dtype)
        self.tokens = Tokens(tokenizer, self.model, pin=device.type == "cuda")
        self._device = device
        self.is_stateless = is_stateless(self.model)
        self._longest = longest_row(self.model, tokenizer)
        config = self.model.config
        self._labels = [config.id2label[index] for index in range(config.num_labels)]
        text_config = config.get_text_config()
        if text_config.pad_token_id is None:
            # Decoders use a row's last token that is not this one. Without a pad token they use the last column and
            # reject batches; an id that no token has gives the same output without the error.
            text_config.pad_token_id = _NO_TOKEN
        takes_cache = "use_cache" in inspect.signature(self.model.forward).parameters
        self._options = {"use_cache": False} if takes_cache else {}
        self.memory_bytes = memory_bytes(self.model)
        self._configure(parameters)

    def with_parameters(self, parameters: TextClassificationParameters) -> Self:
        """See `TaskModel`."""
        other = copy.copy(self)
        other._configure(parameters)
        return other

    def _configure(self, parameters: TextClassificationParameters) -> None:
        self._is_many = parameters.inputs == "any"
        self._limits = resolve_limits(parameters, self._longest, least=self.tokens.num_special)
        self._top_k = parameters.top_k
        self._function = parameters.function_to_apply or self._default_function()

    def _default_function(self) -> str:
        problem, num_labels = self.model.config.problem_type, self.model.config.num_labels
        if problem == "regression":
            return "none"
        if problem == "multi_label_classification" or num_labels == 1:
            return "sigmoid"
        return "softmax"

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """See `TaskModel`."""
        return encode_many(self.tokens, rows, self._limits) if self._is_many else self.tokens.encode(rows, self._limits)

    def collate(self, batch: Sequence[Encoded]) -> Mapping[str, torch.Tensor] | Parts:
        """See `TaskModel`."""
        return collate_inputs(self.tokens, batch) if self._is_many else self.tokens.collate(batch)

    def forward(self, collated: Any) -> torch.Tensor:
        """See `TaskModel`.

        Returns:
            Scores, (B, L) float32; one row for each window if rows may have several.
        """
        return forward_inputs(collated, self._scores) if self._is_many else self._scores(collated)

    def probe_padding(self, *, packs: bool = False) -> Padding:
        """See `PadsRows`."""
        return probe_padding(
            self.tokens, self.model, self._logits, longest=self._longest, packs=packs, looks_for_ends=True
        )

    def _logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits_BL: torch.Tensor = call_model(self.model, inputs, **self._options).logits
        return logits_BL

    def _scores(self, collated: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits_BL = self._logits(to_device(collated, self._device)).float()
        if self._function == "softmax":
            return logits_BL.softmax(dim=-1)
        return logits_BL.sigmoid() if self._function == "sigmoid" else logits_BL

    def decode(self, batch: Sequence[Encoded], outputs: torch.Tensor) -> list[Any]:
        """See `TaskModel`."""
        scores_BL = outputs.cpu().numpy()
        finite_B = np.isfinite(scores_BL).all(axis=1)
        # Stable, so that among equal scores the label with the lower id comes first, as in the pipeline.
        best_BK = np.argsort(-scores_BL, axis=1, kind="stable")[:, : self._top_k]
        top_BK = np.take_along_axis(scores_BL, best_BK, axis=1)
        found = [
            [{"label": self._labels[index], "score": score} for index, score in zip(best, top, strict=True)]
            if finite
            else NOT_FINITE
            for best, top, finite in zip(best_BK.tolist(), top_BK.tolist(), finite_B, strict=True)
        ]
        return by_row(batch, found) if self._is_many else found
