"""A task of `transformers.pipeline`, computed in the engine's four stages and in batches.

An output is what the pipeline returns for that row alone, converted to JSON: arrays become lists, and images become PNG
data URLs. Rows are joined only if their tensors have equal shapes, so that no output depends on padding.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch

from jobs.config.access_rules import AccessRules
from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.errors import StokerError
from jobs.specs.parameters.media_tasks import SpeechRecognitionParameters
from jobs.specs.parameters.task_parameters import TaskParameters
from worker.device import is_out_of_memory, is_poisoned, tensor_bytes
from worker.inference.pipelines.alone import TASKS_WHOLE, draws, fixed_randomness, reason_to_compute_alone
from worker.inference.pipelines.calls import LABELS, call_of, open_row
from worker.inference.pipelines.encoder_parts import compute_encoder_in_parts
from worker.inference.pipelines.joined_items import cut, join, moved, num_tokens, shape_of, token_ids
from worker.inference.pipelines.open_pipeline import fast_images_of, for_encoding, model_class, open_pipeline
from worker.inference.pipelines.parameters import check_against_pipeline, pipeline_parameters
from worker.inference.pipelines.row_items import prepare_row
from worker.inference.pipelines.speech import Speech, SpeechPart
from worker.models import transformers_internals as internals
from worker.models.batching import auto_max_tokens
from worker.models.failures import plain_sentence
from worker.models.json_values import json_value
from worker.models.kernels.packed_output import pack_output_layer
from worker.models.load import ModelFolder, load_config, load_weights, memory_bytes
from worker.models.media.open_media import as_files, check_packages
from worker.models.task_model import Encoded
from worker.models.texts.limits import longest_pipeline_row, num_token_ids, token_error
from worker.models.transformers_internals import Call

_MAY_MISS = {"feature-extraction": ("pooler.*", "*.pooler.*"), "image-feature-extraction": ("pooler.*", "*.pooler.*")}
_NO_CHANGES: Mapping[str, Any] = {}
_Places = Sequence[tuple[int, int]]
"""For each item of a group, the position of its row in the batch and of the item in its row."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The features of one row, ready for the forward pass."""

    call: Call
    items: Sequence[Mapping[str, Any]]
    """What `preprocess` returned for the row; empty if the forward thread prepares the row."""
    speech: SpeechPart | None = None
    """The row's sound, for speech recognition."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Items of equal shapes, which are computed together."""

    places: _Places
    inputs: Mapping[str, Any] | None
    """The joined items; None if the forward thread prepares the row."""
    call: Call
    """The call of the first item's row."""


class Staged:
    """A `TaskModel` that runs the steps of a pipeline separately."""

    def __init__(
        self,
        source: ModelFolder,
        parameters: TaskParameters,
        *,
        device: torch.device,
        dtype: torch.dtype,
        rules: AccessRules,
    ) -> None:
        """
        Args:
            source: The model's files.
            parameters: The job's parameters, of the type of its task.
            device: Device on which the model computes.
            dtype: Type of the model's weights.
            rules: Access rules; their `input_roots` limit the files that rows may name.

        Raises:
            InvalidModel: The model cannot be loaded, or not for this task.
            InvalidSpec: A parameter is invalid, or this host lacks a package that the task needs.
        """
        self._task = task = parameters.TASK
        self._device = device
        self._rules = rules
        check_packages(task)
        self.model = model = load_weights(
            source,
            model_class(source, task, load_config(source)),
            task=task,
            device=device,
            dtype=dtype,
            may_miss=_MAY_MISS.get(task, ()),
        )
        self._pipeline = open_pipeline(source, task, model, device)
        self._fast_images = fast_images_of(self._pipeline)
        self._encoder = for_encoding(self._pipeline, self._fast_images)
        self._encoders = {0: self._encoder}
        # The parts of such a row are grouped by their own shapes, across rows; other rows share a shape already.
        self._is_chunked = self.pads_nothing = internals.is_chunked(self._pipeline)
        self._is_whole = task in TASKS_WHOLE
        self._rate = getattr(self._pipeline.feature_extractor, "sampling_rate", None)
        self.memory_bytes = memory_bytes(model)
        self._longest = longest_pipeline_row(model, self._pipeline.tokenizer if task == "feature-extraction" else None)
        # Placeholder ids of images may lie beyond the embedding table; their vectors come from other layers.
        self._num_ids = None if task in ("image-text-to-text", "any-to-any") else num_token_ids(model)
        self.generates = internals.calls_generate(self._pipeline)
        self._most_tokens = auto_max_tokens(device.type, 2**34, generates=self.generates)
        """Most tokens of a batch of parts of one row; several rows are within the budget together."""
        if self.generates and device.type == "cpu":
            compute_encoder_in_parts(model)
            self.memory_bytes += pack_output_layer(model)
        self._configure(parameters)

    def with_parameters(self, parameters: TaskParameters) -> Self:
        """See `TaskModel`."""
        other = copy.copy(self)
        other._configure(parameters)
        return other

    def for_thread(self, number: int) -> Self:
        """See `EncodesRowByRow`. Copying tokenizers takes long, so the copies are kept for later leases."""
        if number not in self._encoders:
            self._encoders[number] = for_encoding(self._pipeline, self._fast_images)
        other = copy.copy(self)
        other._encoder = self._encoders[number]
        return other

    def _configure(self, parameters: TaskParameters) -> None:
        check_against_pipeline(self._pipeline, parameters)
        self._parameters = pipeline_parameters(parameters)
        self._speech = None
        if isinstance(parameters, SpeechRecognitionParameters):
            self._speech = Speech(self._pipeline, parameters)
            self._parameters.update(self._speech.options)
        forward = internals.sanitized(self._pipeline, self._parameters)[1]
        self._is_alone = reason_to_compute_alone(self._task, self._pipeline, forward) is not None
        self._draws = draws(self._pipeline, forward)

    # -- encoding

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """See `TaskModel`. Opens the files that rows name, so that an invalid file fails only its own row."""
        return [self._encoded(row) for row in rows]

    def _encoded(self, row: Row) -> Encoded:
        try:
            has_labels = bool(self._parameters.get(LABELS))
            values = open_row(self._task, row.values, self._rules, rate=self._rate, has_labels=has_labels)
            if isinstance(values, RowError):
                return Encoded(row, 0, None, values)
            with as_files(values) as files:
                return self._prepared(row, files)
        except StokerError:
            raise
        except Exception as error:
            if is_out_of_memory(error) or is_poisoned(error):
                raise
            return Encoded(row, 0, None, RowError(RowErrorCode.ROW_FAILED, plain_sentence(error)))

    def _prepared(self, row: Row, values: Mapping[str, Any]) -> Encoded:
        speech = None
        if self._speech is not None:
            values, speech = self._speech.select(values)
        # A copy, since pipelines change their parameters.
        arguments, options = call_of(self._task, values, copy.deepcopy(self._parameters))
        call = internals.catch_call(self._pipeline, arguments, options)
        if self._is_whole:
            return Encoded(row, 1, _Prepared(call, ()), shape=row.row_index)
        if speech is not None and speech.is_silent:
            return Encoded(row, 1, _Prepared(call, (), speech))
        items = prepare_row(self._encoder, call, self._rules)
        if isinstance(items, RowError):
            return Encoded(row, 0, None, items)
        if self._speech is not None:
            self._speech.prepare_long(call, items)
        config = self._pipeline.model.config
        tokens = sum(num_tokens(item, config) for item in items)
        error = self._unusable(items)
        if error is not None:
            return Encoded(row, tokens, None, error)
        features, size = _Prepared(call, items, speech), tensor_bytes(items)
        seconds = 0.0 if speech is None else speech.seconds
        return Encoded(row, tokens, features, shape=self._shape(row, items), num_bytes=size, seconds=seconds)

    def _shape(self, row: Row, items: Sequence[Mapping[str, Any]]) -> Hashable:
        if self._is_alone:
            return row.row_index
        return None if self._is_chunked else shape_of(items[0])

    def _unusable(self, items: Sequence[Mapping[str, Any]]) -> RowError | None:
        if not items:
            return RowError(RowErrorCode.EMPTY_ROW, "the row is empty")
        for ids in (ids for item in items for ids in token_ids(item)):
            num_tokens = ids.shape[-1]
            largest_id = int(ids.max()) if num_tokens else 0
            error = token_error(num_tokens, largest_id, most_tokens=self._longest, num_ids=self._num_ids)
            if error is not None:
                return error
        return None

    # -- computing

    def collate(self, batch: Sequence[Encoded]) -> list[_Group]:
        """See `TaskModel`. Joins the items of equal shapes."""
        rows: list[_Prepared] = [one.features for one in batch]
        if self._is_whole:
            return [_Group([(place, 0)], None, row.call) for place, row in enumerate(rows)]
        alike: dict[Hashable, list[tuple[int, int]]] = {}
        for place, row in enumerate(rows):
            for number, item in enumerate(row.items):
                shape = (place, number) if self._is_alone else shape_of(item)
                alike.setdefault(shape, []).append((place, number))
        config = self._pipeline.model.config
        groups = []
        for places in alike.values():
            first, number = places[0]
            most = len(places)
            if len(rows) == 1:
                most = max(1, self._most_tokens // num_tokens(rows[first].items[number], config))
            for start in range(0, len(places), most):
                groups.append(self._group(rows, places[start : start + most]))
        return groups

    def _group(self, rows: Sequence[_Prepared], places: Sequence[tuple[int, int]]) -> _Group:
        items = [rows[place].items[number] for place, number in places]
        inputs = items[0] if len(items) == 1 else join(items)
        if self._device.type == "cuda":
            inputs = {
                name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
            }
        return _Group(places, inputs, rows[places[0][0]].call)

    def forward(self, collated: Sequence[_Group]) -> list[tuple[_Places, Any]]:
        """See `TaskModel`.

        Returns:
            Each group's places with what the pipeline's `_forward` returned for it, on the device. The group's inputs
            are not kept.
        """
        return [(group.places, self._computed(group)) for group in collated]

    def _computed(self, group: _Group) -> Any:
        with fixed_randomness(self._device) if self._draws else nullcontext():
            return self._output(group)

    def _output(self, group: _Group) -> Any:
        if group.inputs is not None:
            inputs = moved(group.inputs, self._device)
            if self._fast_images is not None:
                self._fast_images.replace_bytes(inputs)
            if self._speech is not None and len(group.places) > 1:
                return self._speech.compute(inputs, group.call.forward)
            return internals.compute(self._pipeline, inputs, group.call.forward)
        outputs = []
        for item in internals.preprocess(self._pipeline, group.call):
            found = internals.compute(self._pipeline, moved(item, self._device), group.call.forward)
            outputs.append(moved(found, torch.device("cpu")))
        return outputs

    # -- decoding

    def decode(self, batch: Sequence[Encoded], outputs: Sequence[tuple[_Places, Any]]) -> list[Any]:
        """See `TaskModel`."""
        found: list[dict[int, Any]] = [{} for _ in batch]
        for places, computed in outputs:
            for (place, number), output in zip(places, self._parts(places, computed), strict=True):
                found[place][number] = output
        return [
            self._completed(one.features, [parts[number] for number in sorted(parts)])
            for one, parts in zip(batch, found, strict=True)
        ]

    def _parts(self, places: _Places, computed: Any) -> Iterator[Any]:
        outputs = moved(computed, torch.device("cpu"))
        if len(places) == 1:
            yield outputs
            return
        for position in range(len(places)):
            yield cut(outputs, position, len(places))

    def _completed(self, prepared: _Prepared, parts: list[Any]) -> Any:
        if self._speech is None or prepared.speech is None:
            return self._read(prepared.call, parts)
        return self._speech.completed(prepared.speech, lambda changes: self._read(prepared.call, parts, changes))

    def _read(self, call: Call, parts: list[Any], changes: Mapping[str, Any] = _NO_CHANGES) -> Any:
        if self._is_whole:
            [parts] = parts
        outputs = parts[0]
        if self._is_chunked:  # copies, since pipelines remove what they have read
            outputs = [{name: value for name, value in part.items() if name != "is_last"} for part in parts]
        return json_value(self._pipeline.postprocess(outputs, **{**call.postprocess, **changes}))
