"""Embeddings: one float32 vector for each text, equal to the `encode` of sentence-transformers 6.

A sentence-transformers folder's own modules, prompts and maximum length are used. For any other folder, the last token
is pooled if the first architecture in its config.json ends in `ForCausalLM`, else the mean of all tokens, without
normalising; if it has a chat template, each text is rendered as a user message.

Shapes: B rows, T tokens, D dimensions of a token's vector, E dimensions of a row's.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from tokenizers import normalizers
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedTokenizerBase

from jobs.access.sentence_folder import select_prompt, too_many_dimensions
from jobs.data.rows import Row, RowError
from jobs.errors import InvalidSpec
from jobs.messages import one_line
from jobs.specs.parameters.text_tasks import EmbeddingsParameters
from worker.device import is_out_of_memory, is_poisoned
from worker.inference.tasks.embedding_settings import AUTO, loading_arguments, read_embedding_settings
from worker.inference.tasks.multi_input import Parts, by_row, collate_inputs, encode_many, forward_inputs
from worker.inference.tasks.padding_probe import probe_padding
from worker.inference.tasks.pooling import Normalize, pool, split_rows
from worker.models.load import ModelFolder, load_config, load_tokenizer, load_weights, memory_bytes
from worker.models.stateless import is_stateless
from worker.models.task_model import Encoded
from worker.models.texts.chat_form import ChatForm, message_format
from worker.models.texts.limits import Limits, longest_row, position_limit
from worker.models.texts.packing import call_model
from worker.models.texts.padding import Padding, behind_tokens
from worker.models.texts.tokens import Tokens, to_device

logger = logging.getLogger(__name__)

TASK = "embeddings"
_MODES = {"mean": "mean", "cls": "cls", "last_token": "lasttoken", "max": "max"}
_UNUSED_WEIGHTS = ("pooler.*", "*.pooler.*")
_ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Encoder-decoder models for which transformers has a class of only the encoder."""


class Embeddings:
    """An encoder, its pooling, and the modules after it."""

    def __init__(
        self, source: ModelFolder, parameters: EmbeddingsParameters, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """
        Args:
            source: The model's files.
            parameters: The parameters of the job.
            device: The device that the model computes on.
            dtype: The dtype that the transformer computes in; pooling and the modules after it use float32.

        Raises:
            InvalidModel: The model cannot be loaded, or does not compute vectors of texts.
            InvalidSpec: A parameter is invalid.
        """
        self._settings = read_embedding_settings(source)
        transformer, subfolder = self._settings.transformer, self._settings.subfolder
        config = load_config(source, subfolder=subfolder, **loading_arguments(transformer, "config"))
        self.model = load_weights(
            source,
            _encoder_class(source, config),
            task=TASK,
            device=device,
            dtype=dtype,
            may_miss=_UNUSED_WEIGHTS,
            subfolder=subfolder,
            config=config,
            **loading_arguments(transformer, "model"),
        )
        tokenizer = load_tokenizer(source, subfolder=subfolder, **loading_arguments(transformer, "processor"))
        if transformer.get("do_lower_case"):
            _lower_case(tokenizer)
        self.tokens = Tokens(tokenizer, self.model, pin=device.type == "cuda")
        form = self._settings.message_format
        if form == AUTO:
            form = message_format(tokenizer, config.model_type)
        self._form = None if form is None else ChatForm(tokenizer, form)
        self._device = device
        self.is_stateless = is_stateless(self.model)
        self._head = [module.eval().requires_grad_(False).to(device) for module in self._settings.head]
        self._positions = position_limit(self.model)
        self._num_hidden = self._count_hidden()
        longest = longest_row(self.model, tokenizer)
        max_seq_length = transformer.get("max_seq_length")
        self._longest = min((limit for limit in (longest, max_seq_length) if limit), default=None)
        self.memory_bytes = memory_bytes(self.model) + sum(memory_bytes(module) for module in self._head)
        self._configure(parameters)

    def with_parameters(self, parameters: EmbeddingsParameters) -> Self:
        """See `TaskModel`."""
        other = copy.copy(self)
        other._configure(parameters)
        return other

    def _configure(self, parameters: EmbeddingsParameters) -> None:
        self._is_many = parameters.inputs == "any"
        self._limits = self._select_limits(parameters)
        self._prompt = select_prompt(self._settings.prompts, self._settings.default_prompt, parameters)
        self._num_prompt_tokens = 0
        if self._prompt and not self._settings.include_prompt and self._form is None:
            self._num_prompt_tokens = self._count_prompt_tokens(self._prompt)
        pooling = parameters.pooling
        self._modes = self._settings.modes if pooling is None else (_MODES[pooling],)
        normalize, own = parameters.normalize, bool(self._head) and isinstance(self._head[-1], Normalize)
        self._is_normalized = own if normalize is None else normalize
        self._before_normalize = self._head[:-1] if own else self._head
        num_dimensions = self._num_dimensions()
        self._dimensions = parameters.dimensions
        if self._dimensions is not None and self._dimensions > num_dimensions:
            raise too_many_dimensions(num_dimensions)

    def _select_limits(self, parameters: EmbeddingsParameters) -> Limits:
        max_length = parameters.max_length
        if max_length is not None and self._positions is not None and max_length > self._positions:
            param = "parameters.max_length"
            raise InvalidSpec(f"{param}: the model accepts at most {self._positions} tokens", param=param)
        least = self.tokens.tokenizer.num_special_tokens_to_add() + 1
        if max_length is not None and max_length < least:
            param = "parameters.max_length"
            raise InvalidSpec(
                f"{param}: must be at least {least}, because the model's special tokens count too", param=param
            )
        return Limits(max_length or self._longest, "longest_first" if parameters.truncate else None)

    def _count_prompt_tokens(self, prompt: str) -> int:
        """Number of tokens of a prompt before a text, without the special tokens that end a row."""
        tokenizer = self.tokens.tokenizer
        ids = tokenizer(prompt, truncation=self._limits.max_tokens is not None, max_length=self._limits.max_tokens)[
            "input_ids"
        ]
        return len(ids) - 1 if ids and ids[-1] in tokenizer.all_special_ids else len(ids)

    def _count_hidden(self) -> int:
        """Number of dimensions of a token's vector. Found by computing, since configs have different names for it, and
        some models return another size (OPT projects, Reformer concatenates two)."""
        one = self.tokens.encode([Row(0, None, {"text": "a"})], Limits(None, None))[0]
        try:
            with torch.inference_mode():
                inputs = to_device(self.tokens.padded(one.features or [], self.tokens.side), self._device)
                return self._hidden(inputs).shape[-1]
        except Exception as error:
            if is_out_of_memory(error) or is_poisoned(error):
                raise
            logger.warning("the model fails on a row of one letter: %s", one_line(error))
            return int(self.model.config.get_text_config().hidden_size)

    def _num_dimensions(self) -> int:
        """Number of dimensions of a row's vector, found by running one through the modules after pooling."""
        vectors_BE = torch.zeros(1, self._num_hidden * len(self._modes))
        with torch.inference_mode():
            try:
                for module in self._before_normalize:
                    vectors_BE = module(vectors_BE.to(self._device))
            except RuntimeError as error:
                param = "parameters.pooling"
                modes = " and ".join(self._settings.modes)
                raise InvalidSpec(
                    f"{param}: the model's Dense module needs its own pooling, {modes}", param=param
                ) from error
        return vectors_BE.shape[1]

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """See `TaskModel`."""
        if self._is_many:
            return encode_many(self.tokens, rows, self._limits, prefix=self._prompt, form=self._form)
        return self.tokens.encode(rows, self._limits, prefix=self._prompt, form=self._form)

    def collate(self, batch: Sequence[Encoded]) -> Mapping[str, torch.Tensor] | Parts:
        """See `TaskModel`."""
        return collate_inputs(self.tokens, batch) if self._is_many else self.tokens.collate(batch)

    def forward(self, collated: Any) -> torch.Tensor:
        """See `TaskModel`.

        Returns:
            Vectors, (B, E) float32; one for each window if rows may have several.
        """
        return forward_inputs(collated, self._vectors) if self._is_many else self._vectors(collated)

    def probe_padding(self, *, packs: bool = False) -> Padding:
        """See `PadsRows`."""
        return probe_padding(self.tokens, self.model, self._hidden, longest=self._longest, packs=packs)

    def _hidden(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        hidden_BTD: torch.Tensor = call_model(self.model, inputs).last_hidden_state
        return hidden_BTD

    def _vectors(self, collated: Mapping[str, torch.Tensor]) -> torch.Tensor:
        inputs = to_device(collated, self._device)
        mask_BT = inputs["attention_mask"]
        hidden_BTD = behind_tokens(self._hidden(inputs), mask_BT, self.tokens.side)
        mask_BT = behind_tokens(mask_BT.unsqueeze(-1), mask_BT, self.tokens.side).squeeze(-1)
        vectors_BE = pool(hidden_BTD, mask_BT, self._modes, num_prompt_tokens=self._num_prompt_tokens)
        for module in self._before_normalize:
            vectors_BE = module(vectors_BE)
        if self._dimensions is not None:
            vectors_BE = vectors_BE[:, : self._dimensions]
        if self._is_normalized:
            vectors_BE = nn.functional.normalize(vectors_BE, p=2, dim=-1)
        if self._dimensions is None and self._settings.dimensions is not None:
            # The folder's own `truncate_dim`: sentence-transformers truncates after normalising, not before.
            vectors_BE = vectors_BE[:, : self._settings.dimensions]
        return vectors_BE

    def decode(self, batch: Sequence[Encoded], outputs: torch.Tensor) -> list[Any]:
        """See `TaskModel`."""
        found = split_rows(outputs)
        if not self._is_many:
            return found
        return [row if isinstance(row, RowError) else np.stack(row) for row in by_row(batch, found)]


def _encoder_class(source: ModelFolder, config: PretrainedConfig) -> Any:
    if not config.is_encoder_decoder:
        return AutoModel
    import transformers

    name = _ENCODERS.get(config.model_type)
    if name is None:
        raise source.invalid(f"is an encoder-decoder ({config.model_type}), whose encoder cannot be used by itself")
    return getattr(transformers, name)


def _lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer ignore case, as sentence-transformers does for `do_lower_case`."""
    if not tokenizer.is_fast:
        tokenizer.do_lower_case = True
        return
    backend = tokenizer.backend_tokenizer
    steps = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
