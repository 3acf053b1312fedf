"""Text generation: continue a prompt or a chat, with each row's own parameters.

An output is the pipeline's list, one entry for each choice: `{"generated_text", "finish_reason", "num_tokens",
"logprobs"}`. The text is what was generated, after the prompt if `return_full_text` is true. `finish_reason` is `stop`
(an end token, or a stop string, which the text does not include) or `length`. Greedy decoding gives the same tokens as
`generate` for the row alone; random draws depend only on the row, see `sampling`.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from jobs.config.access_rules import AccessRules
from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.data.sources.values import kind_name
from jobs.errors import InvalidSpec
from jobs.specs.parameters.generation import FALLBACK_NEW_TOKENS, TextGenerationParameters
from worker.inference.generation.completions import Detokenizer
from worker.inference.generation.continuations import Continuation, Request
from worker.inference.generation.decoding import DecodingLoop
from worker.inference.generation.generation_engine import GenerationEngine
from worker.inference.generation.images.image_prompts import ImagePrompts, PromptMaker
from worker.inference.generation.prompts import TEXTS_ONLY, Prompts, RowPrompt, continues_final_message, is_chat
from worker.inference.generation.sampling import resolve_sampling
from worker.inference.generation.vllm_decoding import VllmEngine
from worker.models.load import ModelFolder, load_tokenizer
from worker.models.task_model import Encoded
from worker.models.texts.limits import longest_row, position_limit
from worker.models.texts.tokens import Tokens

TASK = "text-generation"
_DEFAULTS = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")
"""Parameters whose defaults come from the model's generation_config.json."""
_UNLIMITED = 2**31
ENGINES: Mapping[str, type[GenerationEngine]] = {"transformers": DecodingLoop, "vllm": VllmEngine}
"""Value of `ModelRef.engine` -> engine."""
_NO_PARAMETERS_OF_ITS_OWN = TextGenerationParameters()


class TextGeneration:
    """A decoder with a language modeling head."""

    def __init__(
        self,
        source: ModelFolder,
        parameters: TextGenerationParameters,
        *,
        device: torch.device,
        dtype: torch.dtype,
        engine: type[GenerationEngine] = DecodingLoop,
        processor: Any | None = None,
        rules: AccessRules | None = None,
        no_images: str = TEXTS_ONLY,
    ) -> None:
        """
        Args:
            source: The model's files.
            parameters: The parameters of the job.
            device: The device that the model computes on.
            dtype: The dtype that the model computes in.
            engine: The engine that generates.
            processor: The processor of a vision-language model; None for a model that takes only texts.
            rules: Access rules for the images that rows name; needed with a processor.
            no_images: Without a processor, the message for rows with images.

        Raises:
            InvalidModel: The model cannot be loaded, or is not a decoder.
            InvalidSpec: A parameter is invalid, or the engine does not support the model.
            DeviceOutOfMemory: The device has too little memory for the engine.
        """
        self._model = model = engine.load_model(source, device=device, dtype=dtype)
        self._tokenizer = tokenizer = load_tokenizer(source) if processor is None else processor.tokenizer
        _check_kind(source, model)
        tokens = Tokens(tokenizer, model, pin=False)
        config = model.generation_config
        self._defaults = {name: getattr(config, name, None) for name in _DEFAULTS}
        ends = config.eos_token_id
        self._end_tokens = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        added = tokenizer.added_tokens_decoder
        self._special_tokens = {one.content: token for token, one in added.items() if one.special}
        self._prompts: PromptMaker = Prompts(tokens, no_images=no_images)
        if processor is not None and rules is not None:
            self._prompts = ImagePrompts(tokens, processor, model, rules, keeps_opened=engine.prepares_images)
        # Three threads use a tokenizer at once; sharing one, they would change each other's settings.
        self._detokenizer = Detokenizer(copy.deepcopy(tokenizer))
        self.token_bytes = _token_bytes(model)
        self._configure(parameters)
        self._engine = engine(
            source,
            model,
            device=device,
            pad_token=tokens.pad_token_id,
            finds_stop=Detokenizer(copy.deepcopy(tokenizer)).finds_stop,
        )
        self.memory_bytes = self._engine.memory_bytes
        limits = (position_limit(model) or longest_row(model, tokenizer), self._engine.longest)
        self._longest = min((limit for limit in limits if limit is not None), default=None)

    def with_parameters(self, parameters: TextGenerationParameters) -> Self:
        """See `TaskModel`."""
        other = copy.copy(self)
        other._configure(parameters)
        return other

    def _configure(self, parameters: TextGenerationParameters) -> None:
        self._parameters = parameters

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """See `TaskModel`."""
        owns = [row_parameters(row) for row in rows]
        job = self._parameters
        merged = [job if isinstance(own, RowError) else job.with_row(own) for own in owns]
        prompts = self._prompts.encode(rows, merged)
        return [self._encoded(*each) for each in zip(rows, owns, merged, prompts, strict=True)]

    def _encoded(
        self,
        row: Row,
        own: TextGenerationParameters | RowError,
        parameters: TextGenerationParameters,
        prompt: RowPrompt | RowError,
    ) -> Encoded:
        if isinstance(own, RowError):
            return Encoded(row, 0, None, own)
        if isinstance(prompt, RowError):
            return Encoded(row, 0, None, prompt)
        num_tokens = len(prompt.tokens)
        room = _UNLIMITED if self._longest is None else self._longest - num_tokens
        if room < 1:
            accepted = f"the model accepts {self._longest}, including at least one new token"
            message = f"the prompt has {num_tokens} tokens; {accepted}"
            return Encoded(row, num_tokens, None, RowError(RowErrorCode.ROW_TOO_LONG, message))
        request = self._request(row, prompt, parameters, room, own_seed="seed" in own.model_fields_set)
        num_bytes = 0 if prompt.images is None else prompt.images.num_bytes
        return Encoded(row, request.num_tokens * request.num_sequences, request, num_bytes=num_bytes)

    def _request(
        self, row: Row, prompt: RowPrompt, parameters: TextGenerationParameters, room: int, *, own_seed: bool
    ) -> Request:
        max_new_tokens = parameters.max_new_tokens or self._defaults["max_new_tokens"] or FALLBACK_NEW_TOKENS
        stops = parameters.stops
        end_tokens = frozenset(self._special_tokens[one] for one in stops if one in self._special_tokens)
        text = row.values["text"]
        returns_logprobs = parameters.logprobs or parameters.top_logprobs > 0
        return Request(
            row_index=row.row_index,
            prompt=prompt.tokens,
            images=prompt.images,
            max_new_tokens=min(max_new_tokens, room),
            sampling=resolve_sampling(parameters, self._defaults, own_seed=own_seed),
            num_choices=parameters.n,
            stop=tuple(one for one in stops if one not in self._special_tokens),
            end_tokens=end_tokens | self._end_tokens,
            top_logprobs=parameters.top_logprobs if returns_logprobs else None,
            full_text=parameters.return_full_text,
            continues=is_chat(text) and continues_final_message(text, parameters),
        )

    def collate(self, batch: Sequence[Encoded]) -> list[Request]:
        """See `TaskModel`. Nothing is padded: the engine decides token by token which rows it computes together."""
        return [one.features for one in batch]

    def forward(self, collated: Sequence[Request]) -> list[list[Continuation]]:
        """See `TaskModel`. All rows are computed together."""
        return self.forward_in_flight(collated, max_tokens=_UNLIMITED, max_rows=_UNLIMITED, between=lambda: None)

    def forward_in_flight(
        self, collated: Sequence[Request], *, max_tokens: int, max_rows: int, between: Callable[[], None]
    ) -> list[list[Continuation]]:
        """See `InFlight`."""
        return self._engine.generate(collated, max_tokens=max_tokens, max_rows=max_rows, between=between)

    def close(self) -> None:
        """See `Closable`."""
        self._engine.close()

    def decode(self, batch: Sequence[Encoded], outputs: Sequence[Sequence[Continuation]]) -> list[Any]:
        """See `TaskModel`."""
        return [
            self._detokenizer.output(one.row, one.features, continuations)
            for one, continuations in zip(batch, outputs, strict=True)
        ]


def row_parameters(row: Row) -> TextGenerationParameters | RowError:
    """Read a row's own parameters. They may be JSON text, since a cell of a CSV file holds nothing else."""
    given = row.values.get("parameters")
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except ValueError as error:
            return RowError(RowErrorCode.INVALID_PARAMETER, f"parameters: is not valid JSON: {error}")
    if given is None:
        return _NO_PARAMETERS_OF_ITS_OWN
    if not isinstance(given, Mapping):
        return RowError(RowErrorCode.INVALID_PARAMETER, f"parameters: must be an object, not {kind_name(given)}")
    try:
        return TextGenerationParameters.read(given)
    except InvalidSpec as error:
        return RowError(RowErrorCode.INVALID_PARAMETER, error.message)


def _check_kind(source: ModelFolder, model: PreTrainedModel) -> None:
    """Reject models that are not decoders, or that have no cache of keys and values."""
    if model.config.is_encoder_decoder:
        raise source.invalid(f"a {model.config.model_type} model has an encoder, which {TASK} does not support")
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise source.invalid(f"a {model.config.model_type} model has no cache of keys and values, which {TASK} needs")


def _token_bytes(model: PreTrainedModel) -> int:
    """Bytes that one token of one row takes in the cache."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kept * size * model.dtype.itemsize)
