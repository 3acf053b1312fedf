"""Fill-mask: the words that a masked language model proposes for each mask of a text.

An output is the pipeline's: a list of proposals for a text with one mask, a list of such lists for several masks.

Shapes: B rows, T tokens, V words of the vocabulary, M masks of a batch, K proposals for each.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, FillMaskPipeline

from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.errors import InvalidSpec
from jobs.specs.parameters.text_tasks import FillMaskParameters
from worker.inference.tasks.padding_probe import probe_padding
from worker.models.load import ModelFolder, load_tokenizer, load_weights, memory_bytes
from worker.models.task_model import NOT_FINITE, Encoded
from worker.models.texts.limits import longest_row, resolve_limits
from worker.models.texts.packing import call_model
from worker.models.texts.padding import Padding
from worker.models.texts.tokens import Tokens, to_device

TASK = "fill-mask"


class FillMask:
    """A masked language model."""

    def __init__(
        self, source: ModelFolder, parameters: FillMaskParameters, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """
        Args:
            source: The model's files.
            parameters: The parameters of the job.
            device: The device that the model computes on.
            dtype: The dtype that the model computes in.

        Raises:
            InvalidModel: The model cannot be loaded, has no such head, or its tokenizer has no mask.
            InvalidSpec: A parameter is invalid.
        """
        tokenizer = load_tokenizer(source)
        if tokenizer.mask_token_id is None:
            raise source.invalid("its tokenizer has no mask token, which fill-mask needs")
        self.model = load_weights(source, AutoModelForMaskedLM, task=TASK, device=device, dtype=dtype)
        self.tokens = Tokens(tokenizer, self.model, pin=device.type == "cuda")
        self._device = device
        self._longest = longest_row(self.model, tokenizer)
        # A separate tokenizer: `decode` runs while `encode` uses the other one, and a tokenizer is not thread-safe.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._pipeline = FillMaskPipeline(model=self.model, tokenizer=self._tokenizer, device=device, task=TASK)
        self.memory_bytes = memory_bytes(self.model)
        self._configure(parameters)

    def with_parameters(self, parameters: FillMaskParameters) -> Self:
        """See `TaskModel`."""
        other = copy.copy(self)
        other._configure(parameters)
        return other

    def _configure(self, parameters: FillMaskParameters) -> None:
        self._limits = resolve_limits(parameters.tokenizer, self._longest, least=self.tokens.num_special)
        self._top_k = parameters.top_k
        self._targets: torch.Tensor | None = None
        if parameters.targets is not None:
            try:
                ids = self._pipeline.get_target_ids(parameters.targets)
            except ValueError as error:
                param = "parameters.targets"
                raise InvalidSpec(f"{param}: none of these words is in the model's vocabulary", param=param) from error
            self._targets = torch.from_numpy(ids).to(self._device)

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """See `TaskModel`."""
        return [self._with_mask(one) for one in self.tokens.encode(rows, self._limits)]

    def _with_mask(self, one: Encoded) -> Encoded:
        mask = self.tokens.tokenizer
        if one.error is not None or (one.features[0]["input_ids"] == mask.mask_token_id).any():
            return one
        error = RowError(
            RowErrorCode.NO_MASK,
            f"the text has no mask token ({mask.mask_token}) within the length that the model accepts",
        )
        return Encoded(one.row, one.num_tokens, None, error)

    def collate(self, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """See `TaskModel`. `masks` has the indices of the masks in the flattened batch, (M,)."""
        inputs = self.tokens.collate(batch)
        masks_M = (inputs["input_ids"].flatten() == self.tokens.tokenizer.mask_token_id).nonzero().squeeze(1)
        return {**inputs, "masks": masks_M.pin_memory() if self._device.type == "cuda" else masks_M}

    def forward(self, collated: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TaskModel`.

        Returns:
            Probabilities (M, K) float32 and token ids (M, K) of the proposals.
        """
        inputs = to_device(collated, self._device)
        masks_M = inputs.pop("masks")
        logits_BTV = self._logits(inputs)
        scores_MV = logits_BTV.flatten(0, 1)[masks_M].float().softmax(dim=-1)
        if self._targets is not None:
            scores_MV = scores_MV[:, self._targets]
        scores_MK, ids_MK = scores_MV.topk(min(self._top_k, scores_MV.shape[1]))
        return scores_MK, ids_MK if self._targets is None else self._targets[ids_MK]

    def probe_padding(self, *, packs: bool = False) -> Padding:
        """See `PadsRows`."""
        return probe_padding(self.tokens, self.model, self._logits, longest=self._longest, packs=packs)

    def _logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits_BTV: torch.Tensor = call_model(self.model, inputs).logits
        return logits_BTV

    def decode(self, batch: Sequence[Encoded], outputs: tuple[torch.Tensor, torch.Tensor]) -> list[Any]:
        """See `TaskModel`."""
        scores_MK, ids_MK = (output.cpu().numpy() for output in outputs)
        decoded: list[Any] = []
        start = 0
        for one in batch:
            places = np.flatnonzero(one.features[0]["input_ids"] == self._tokenizer.mask_token_id)
            stop = start + len(places)
            decoded.append(
                self._propositions(one.features[0]["input_ids"], places, scores_MK[start:stop], ids_MK[start:stop])
            )
            start = stop
        return decoded

    def _propositions(
        self, input_ids: np.ndarray, places: np.ndarray, scores_MK: np.ndarray, ids_MK: np.ndarray
    ) -> Any:
        if not np.isfinite(scores_MK).all():
            return NOT_FINITE
        single = len(places) == 1
        lists = []
        for place, scores, ids in zip(places, scores_MK.tolist(), ids_MK.tolist(), strict=True):
            propositions = []
            for score, token in zip(scores, ids, strict=True):
                filled = input_ids.copy()
                filled[place] = token
                filled = filled[filled != self._tokenizer.pad_token_id]
                # The other masks of a text are special tokens too, but must stay in its sequence.
                sequence = self._tokenizer.decode(filled, skip_special_tokens=single)
                token_str = self._tokenizer.decode([token])
                propositions.append({"score": score, "token": token, "token_str": token_str, "sequence": sequence})
            lists.append(propositions)
        return lists[0] if single else lists
