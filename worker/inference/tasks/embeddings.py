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
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from tokenizers import normalizers
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedTokenizerBase

from jobs.access.model_files import read_json
from jobs.access.sentence_folder import (
    chosen_prompt,
    read_pooling,
    read_prompts,
    sentence_modules,
    too_many_dimensions,
)
from jobs.data.rows import Row, RowError
from jobs.errors import InvalidSpec
from jobs.specs.parameters.text_tasks import EmbeddingsParameters
from worker.device import is_out_of_memory, is_poisoned, one_line
from worker.inference.tasks.many import Parts, by_row, collate_inputs, encode_many, forward_inputs
from worker.inference.tasks.padding_probe import probe_padding
from worker.inference.tasks.pooling import Normalize, pool, read_head
from worker.models.chat_form import ChatForm, message_format
from worker.models.limits import Limits, longest_row, position_limit
from worker.models.load import ModelFolder, load_config, load_tokenizer, load_weights, memory_bytes
from worker.models.padding import Padding
from worker.models.task_model import NOT_FINITE, Encoded
from worker.models.tokens import Tokens, behind_tokens, to_device

logger = logging.getLogger(__name__)

TASK = "embeddings"
_AUTO = "auto"
_MODES = {"mean": "mean", "cls": "cls", "last_token": "lasttoken", "max": "max"}
_UNUSED_WEIGHTS = ("pooler.*", "*.pooler.*")
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Encoder-decoder models for which transformers has a class of only the encoder."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to compute vectors of texts, from a model folder's files."""

    transformer: str
    """Subfolder of the transformer."""
    modes: tuple[str, ...]
    include_prompt: bool
    head: tuple[nn.Module, ...]
    settings: Mapping[str, Any]
    """`max_seq_length`, `do_lower_case` and arguments for loading."""
    message_format: str | None
    """How texts are rendered as chat messages: None if they are not, `auto` to derive the form from the template."""
    prompts: Mapping[str, str]
    default_prompt: str | None
    dimensions: int | None


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
        self._recipe = _read_recipe(source)
        said, subfolder = self._recipe.settings, self._recipe.transformer
        config = load_config(source, subfolder=subfolder, **_arguments(said, "config"))
        self.model = load_weights(
            source,
            _encoder_class(source, config),
            task=TASK,
            device=device,
            dtype=dtype,
            may_miss=_UNUSED_WEIGHTS,
            subfolder=subfolder,
            config=config,
            **_arguments(said, "model"),
        )
        tokenizer = load_tokenizer(source, subfolder=subfolder, **_arguments(said, "processor"))
        if said.get("do_lower_case"):
            _lower_case(tokenizer)
        self.tokens = Tokens(tokenizer, self.model, pin=device.type == "cuda")
        form = self._recipe.message_format
        if form == _AUTO:
            form = message_format(tokenizer, config.model_type)
        self._form = None if form is None else ChatForm(tokenizer, form)
        self._device = device
        self._head = [module.eval().requires_grad_(False).to(device) for module in self._recipe.head]
        self._positions = position_limit(self.model)
        self._num_hidden = self._count_hidden()
        longest = longest_row(self.model, tokenizer)
        max_seq_length = said.get("max_seq_length")
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
        self._limits = self._chosen_limits(parameters)
        self._prompt = chosen_prompt(self._recipe.prompts, self._recipe.default_prompt, parameters)
        self._num_prompt_tokens = 0
        if self._prompt and not self._recipe.include_prompt and self._form is None:
            self._num_prompt_tokens = self._count_prompt_tokens(self._prompt)
        pooling = parameters.pooling
        self._modes = self._recipe.modes if pooling is None else (_MODES[pooling],)
        normalize, own = parameters.normalize, bool(self._head) and isinstance(self._head[-1], Normalize)
        self._is_normalized = own if normalize is None else normalize
        self._before_normalize = self._head[:-1] if own else self._head
        num_dimensions = self._num_dimensions()
        self._dimensions = parameters.dimensions
        if self._dimensions is not None and self._dimensions > num_dimensions:
            raise too_many_dimensions(num_dimensions)

    def _chosen_limits(self, parameters: EmbeddingsParameters) -> Limits:
        max_length = parameters.max_length
        if max_length is not None and self._positions is not None and max_length > self._positions:
            param = "parameters.max_length"
            raise InvalidSpec(f"{param}: the model takes at most {self._positions} tokens", param=param)
        least = self.tokens.tokenizer.num_special_tokens_to_add() + 1
        if max_length is not None and max_length < least:
            param = "parameters.max_length"
            raise InvalidSpec(f"{param}: must be at least {least}, as the model's own tokens count too", param=param)
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
            logger.warning("the model fails at a row of one letter: %s", one_line(error))
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
                modes = " and ".join(self._recipe.modes)
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

    def probe_padding(self) -> Padding:
        """See `PadsRows`."""
        return probe_padding(self.tokens, self.model, self._hidden, longest=self._longest)

    def _hidden(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        hidden_BTD: torch.Tensor = self.model(**inputs).last_hidden_state
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
        if self._dimensions is None and self._recipe.dimensions is not None:
            # The folder's own `truncate_dim`: sentence-transformers truncates after normalising, not before.
            vectors_BE = vectors_BE[:, : self._recipe.dimensions]
        return vectors_BE

    def decode(self, batch: Sequence[Encoded], outputs: torch.Tensor) -> list[Any]:
        """See `TaskModel`."""
        vectors_BE = outputs.cpu().numpy()
        finite_B = np.isfinite(vectors_BE).all(axis=1).tolist()
        # Each row gets a copy: a view would keep the whole batch in memory as long as one of its rows is referenced.
        found = [
            vector_E.copy() if finite else NOT_FINITE for vector_E, finite in zip(vectors_BE, finite_B, strict=True)
        ]
        if not self._is_many:
            return found
        return [row if isinstance(row, RowError) else np.stack(row) for row in by_row(batch, found)]


def _read_recipe(source: ModelFolder) -> _Recipe:
    modules = sentence_modules(source.path, name=source.name)
    if not modules:
        config = read_json(source.path / "config.json", name=source.name)
        architectures = config.get("architectures") or [""]
        is_causal = str(architectures[0]).endswith("ForCausalLM") and config.get("is_causal", True)
        return _Recipe("", ("lasttoken" if is_causal else "mean",), True, (), {}, _AUTO, {}, None, None)
    transformer = modules[0][1]
    said: dict[str, Any] = {}
    for file in _TRANSFORMER_CONFIGS:
        said = said or read_json(source.path / transformer / file, name=source.name, required=False)
    form = _check_transformer(source, said)
    modes, include_prompt = read_pooling(source.path, modules[1][1], name=source.name)
    prompts, default_prompt = read_prompts(source.path, name=source.name)
    overall = read_json(source.path / "config_sentence_transformers.json", name=source.name, required=False)
    return _Recipe(
        transformer=transformer,
        modes=modes,
        include_prompt=include_prompt,
        head=tuple(read_head(source, modules[2:])),
        settings=said,
        message_format=form,
        prompts=prompts,
        default_prompt=default_prompt,
        dimensions=overall.get("truncate_dim"),
    )


def _check_transformer(source: ModelFolder, said: Mapping[str, Any]) -> str | None:
    """How a folder's Transformer module renders texts as chat messages; None if it does not."""
    if said.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise source.invalid(f"its Transformer module is for '{said['transformer_task']}', not for vectors of texts")
    usual = {"method": "forward", "method_output_name": "last_hidden_state"}
    modalities = said.get("modality_config") or {"text": usual}
    taken = modalities.get("message") or modalities.get("text") or {}
    if any(taken.get(name) != value for name, value in usual.items()):
        raise source.invalid(
            "its Transformer module does not take plain texts in the usual way, which is not supported"
        )
    asked = sorted(name for name, value in (said.get("processing_kwargs") or {}).items() if value)
    if asked:
        raise source.invalid(
            f"its Transformer module has processing_kwargs for {', '.join(asked)}, which are not supported"
        )
    return (taken.get("format") or _AUTO) if "message" in modalities else None


def _arguments(said: Mapping[str, Any], of: str) -> dict[str, Any]:
    """A folder's loading arguments, without those that would run foreign code or move the model."""
    older = {"model": "model_args", "processor": "tokenizer_args", "config": "config_args"}[of]
    arguments = {**(said.get(older) or {}), **(said.get(f"{of}_kwargs") or {})}
    ours = ("trust_remote_code", "use_safetensors", "torch_dtype", "dtype", "device_map", "revision", "token")
    return {name: value for name, value in arguments.items() if name not in ours}


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
