"""Every other task of `transformers.pipeline`, through the pipeline itself, called on a batch at a time.

An output is what the pipeline returns for one row, made into JSON: arrays become lists, images become PNG data URLs.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import transformers
from transformers import GenerationConfig, PretrainedConfig
from transformers.pipelines import SUPPORTED_TASKS

from jobs.errors import InvalidSpec
from jobs.parameters import PARAMETERS, check_parameters, unknown_parameter
from jobs.rows import Row, RowError
from jobs.settings import Settings
from worker.device import is_out_of_memory, one_line
from worker.inference.tasks.interface import Encoded
from worker.inference.tasks.loading import ModelFolder, load_config, load_weights, memory_bytes
from worker.inference.tasks.media import MEDIA_TOKENS, jsonable, open_media
from worker.inference.tasks.tokens import longest_row

_MAY_MISS = {"feature-extraction": ("pooler.*", "*.pooler.*"), "image-feature-extraction": ("pooler.*", "*.pooler.*")}
_PARTS = ("tokenizer", "image_processor", "video_processor", "feature_extractor", "processor")
_ALONE = ("text", "image", "audio", "video")
"""Inputs that a pipeline takes as they are where a row has no other."""
_AS_ARGUMENT = "candidate_labels"
"""The input that pipelines take as an argument of the call, not with the row."""
_CODE = frozenset({"trust_remote_code", "custom_generate", "assistant_model", "model", "generation_config"})
"""Arguments of `generate` and of loaders that would bring code or models from elsewhere."""


class Generic:
    """A pipeline object."""

    def __init__(
        self,
        task: str,
        source: ModelFolder,
        parameters: Mapping[str, Any],
        *,
        device: torch.device,
        dtype: torch.dtype,
        settings: Settings,
    ) -> None:
        """
        Args:
            task: its name.
            source: the model's files.
            parameters: of the job.
            device: where it computes.
            dtype: in which it computes.
            settings: whose `input_roots` bound the files that rows name.

        Raises:
            InvalidModel: it cannot be loaded, or not for this task.
            InvalidSpec: a parameter is wrong.
        """
        self._task = task
        self._settings = settings
        config = load_config(source)
        model = load_weights(
            source,
            _model_class(source, task, config),
            task=task,
            device=device,
            dtype=dtype,
            may_miss=_MAY_MISS.get(task, ()),
        )
        self._pipeline = _build(source, task, model, device)
        self.memory_bytes = memory_bytes(model)
        tokenizer = self._pipeline.tokenizer
        self._longest = None if tokenizer is None else longest_row(model, tokenizer)
        # Padding on the left would shift an encoder's positions; on the right it would part a decoder from its prompt.
        if tokenizer is not None:
            tokenizer.padding_side = "left" if self._generates else "right"
        # `encode` runs while `forward` uses the pipeline's tokenizer, and one cannot do both at once.
        self._counter = copy.deepcopy(tokenizer)
        self._configure(parameters)

    @property
    def _generates(self) -> bool:
        return bool(self._pipeline._pipeline_calls_generate)

    def with_parameters(self, parameters: Mapping[str, Any]) -> Self:
        """See `TaskModel`."""
        other = copy.copy(self)
        other._configure(parameters)
        return other

    def _configure(self, parameters: Mapping[str, Any]) -> None:
        check_parameters(self._task, parameters)
        self._check_names(parameters)
        try:
            self._pipeline._sanitize_parameters(**parameters)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidSpec(
                f"parameters: {self._task} refuses them: {one_line(error)}", param="parameters"
            ) from error
        self._parameters = dict(parameters)

    def _check_names(self, parameters: Mapping[str, Any]) -> None:
        """Pipelines hand names that they do not know on, or say nothing at all."""
        if self._task in PARAMETERS:
            return
        kinds = inspect.signature(self._pipeline._sanitize_parameters).parameters.values()
        known = [parameter.name for parameter in kinds if parameter.kind is not parameter.VAR_KEYWORD]
        if self._generates:
            known += [name for name in vars(GenerationConfig()) if not name.startswith("_") and name not in known]
        for name, value in parameters.items():
            if name not in known or name in _CODE:
                raise unknown_parameter(self._task, name, tuple(name for name in known if name not in _CODE))
            forbidden = sorted(_CODE & _inner_names(value))
            if forbidden:
                param = f"parameters.{name}.{forbidden[0]}"
                raise InvalidSpec(f"{param}: cannot be set by a job", param=param)

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """See `TaskModel`. Opens the files that rows name, so that one that is no image fails alone."""
        lengths = self._lengths(rows)
        return [self._encoded(row, length) for row, length in zip(rows, lengths, strict=True)]

    def _lengths(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of each row, as far as they can be told before the pipeline makes them."""
        lengths = [sum(MEDIA_TOKENS.get(name, 0) for name in row.values) for row in rows]
        texts = [row.values.get("text") for row in rows]
        countable = [index for index, text in enumerate(texts) if isinstance(text, str)]
        if self._counter is not None and countable:
            counted = self._counter([texts[index] for index in countable], return_attention_mask=False, verbose=False)
            for index, ids in zip(countable, counted["input_ids"], strict=True):
                lengths[index] += len(ids)
        return [max(1, length) for length in lengths]

    def _encoded(self, row: Row, num_tokens: int) -> Encoded:
        values: dict[str, Any] = {}
        for name, value in row.values.items():
            opened = open_media(name, value, self._settings)
            if isinstance(opened, RowError):
                return Encoded(row, 0, None, opened)
            values[name] = opened
        if self._task == "feature-extraction" and not self._truncates and num_tokens > (self._longest or num_tokens):
            message = f"the row has {num_tokens} tokens, more than the {self._longest} that the model takes"
            return Encoded(row, num_tokens, None, RowError("row_too_long", message))
        if self._truncates and self._longest is not None:
            num_tokens = min(num_tokens, self._longest)
        return Encoded(row, num_tokens, values)

    @property
    def _truncates(self) -> bool:
        inner = self._parameters.get("tokenize_kwargs") or {}
        return bool(self._parameters.get("truncation") or inner.get("truncation"))

    def collate(self, batch: Sequence[Encoded]) -> list[Encoded]:
        """See `TaskModel`. The pipeline makes its tensors itself."""
        return list(batch)

    def forward(self, collated: Sequence[Encoded]) -> list[Any]:
        """See `TaskModel`. Copies, computes and copies back, as the pipeline does; rows with labels of their own by
        themselves."""
        outputs: list[Any] = []
        for labels, members in itertools.groupby(collated, key=lambda one: one.features.get(_AS_ARGUMENT)):
            rows = [self._pipeline_input(one.features) for one in members]
            arguments = self._parameters if labels is None else {**self._parameters, _AS_ARGUMENT: labels}
            outputs += self._pipeline(rows, batch_size=self._batch_size(rows), **copy.deepcopy(arguments))
        return outputs

    def _batch_size(self, rows: Sequence[Any]) -> int:
        tokenizer = self._pipeline.tokenizer
        return 1 if tokenizer is not None and tokenizer.pad_token_id is None else len(rows)

    def _pipeline_input(self, values: Mapping[str, Any]) -> Any:
        given = {name: value for name, value in values.items() if name != _AS_ARGUMENT}
        if self._task == "keypoint-matching":
            return [given["image"], given["image_pair"]]
        if self._task in ("image-text-to-text", "any-to-any"):
            plural = {"image": "images", "video": "videos"}
            return {plural.get(name, name): value for name, value in given.items()}
        if self._task == "zero-shot-object-detection":
            labels = values.get(_AS_ARGUMENT, self._parameters.get(_AS_ARGUMENT))
            return {**given, _AS_ARGUMENT: labels}
        if len(given) == 1 and next(iter(given)) in _ALONE:
            # A copy, as some pipelines take their input apart, and a batch may have to be computed again.
            return copy.copy(next(iter(given.values())))
        return given

    def decode(self, batch: Sequence[Encoded], outputs: Sequence[Any]) -> list[Any]:
        """See `TaskModel`."""
        if self._task == "feature-extraction":
            # In a batch the pipeline leaves the vectors of the padding in.
            outputs = [[output[0][: one.num_tokens]] for one, output in zip(batch, outputs, strict=True)]
        return [jsonable(output) for output in outputs]


def _model_class(source: ModelFolder, task: str, config: PretrainedConfig) -> Any:
    classes = SUPPORTED_TASKS[task]["pt"]
    for auto_class in classes:
        if type(config) in auto_class._model_mapping.keys() or auto_class.__name__ in getattr(config, "auto_map", {}):  # noqa: SIM118 - the mapping's `in` loads every model
            return auto_class
    for architecture in config.architectures or ():
        found = getattr(transformers, architecture, None)
        if found is not None and task == "mask-generation":
            return found
    raise source.invalid(f"it is a {config.model_type} model, which transformers does not have for {task}")


def _build(source: ModelFolder, task: str, model: Any, device: torch.device) -> Any:
    implementation = SUPPORTED_TASKS[task]["impl"]
    if isinstance(implementation, str):
        module, _, name = implementation.rpartition(".")
        implementation = getattr(importlib.import_module(module), name)
    # A pipeline is told for each of its parts where to load it from, as it gets the model itself and not its name.
    parts = {part: str(source.path) for part in _PARTS if getattr(implementation, f"_load_{part}", False) is not False}
    parts["config"] = str(source.path)
    try:
        return transformers.pipeline(
            task, model=model, device=device, dtype=None, trust_remote_code=source.trust_remote_code, **parts
        )
    except Exception as error:
        # `pipeline` itself raises bare Exceptions, such as for a missing processor.
        if is_out_of_memory(error):
            raise
        raise source.invalid(f"cannot be used for {task}: {one_line(error)}") from error


def _inner_names(value: object) -> set[str]:
    """Names at any depth of a parameter's value."""
    if isinstance(value, Mapping):
        return set(value).union(*map(_inner_names, value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*map(_inner_names, value))
    return set()
