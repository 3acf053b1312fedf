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
from transformers import PreTrainedModel

from jobs.config.access_rules import AccessRules
from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.errors import StokerError
from jobs.specs.parameters.task_parameters import TaskParameters
from worker.device import is_out_of_memory, is_poisoned
from worker.inference.generation.image_chats import open_chat
from worker.inference.pipelines import transformers_internals as internals
from worker.inference.pipelines.alone import TASKS_WHOLE, draws, reason_to_compute_alone
from worker.inference.pipelines.calls import LABELS, call_of, row_labels
from worker.inference.pipelines.joining import cut, join, moved, num_tokens, shape_of, token_ids
from worker.inference.pipelines.parameters import check_against_pipeline, without_nulls
from worker.inference.pipelines.transformers_internals import Call
from worker.models.batching import auto_max_tokens
from worker.models.failures import plain_sentence
from worker.models.json_values import json_value
from worker.models.limits import input_embeddings, longest_row, position_limit, token_fault
from worker.models.load import ModelFolder, load_config, load_weights, memory_bytes
from worker.models.media import as_files, check_packages, open_media
from worker.models.task_model import Encoded

_MAY_MISS = {"feature-extraction": ("pooler.*", "*.pooler.*"), "image-feature-extraction": ("pooler.*", "*.pooler.*")}


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The features of one row, ready for the forward pass."""

    call: Call
    items: Sequence[Mapping[str, Any]]
    """What `preprocess` returned for the row; empty if the forward thread prepares the row."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Items of equal shapes, which are computed together."""

    places: Sequence[tuple[int, int]]
    """For each item, the position of its row in the batch and of the item in its row."""
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
            InvalidSpec: A parameter is invalid.
            InvalidInput: This host lacks a package that the task needs.
        """
        self._task = task = parameters.TASK
        self._device = device
        self._rules = rules
        check_packages(task)
        model = load_weights(
            source,
            internals.model_class(source, task, load_config(source)),
            task=task,
            device=device,
            dtype=dtype,
            may_miss=_MAY_MISS.get(task, ()),
        )
        self._pipeline = internals.open_pipeline(source, task, model, device)
        self._encoder = internals.for_encoding(self._pipeline)
        self._is_chunked = internals.is_chunked(self._pipeline)
        self._is_whole = task in TASKS_WHOLE
        self._rate = getattr(self._pipeline.feature_extractor, "sampling_rate", None)
        self.memory_bytes = memory_bytes(model)
        self._longest = _most_tokens_of_a_row(model, self._pipeline.tokenizer if task == "feature-extraction" else None)
        # Placeholder ids of images may lie beyond the embedding table; their vectors come from other layers.
        self._num_ids = None if task in ("image-text-to-text", "any-to-any") else _num_ids(model)
        self._most_tokens = auto_max_tokens(device.type, 2**34)
        self._configure(parameters)

    def with_parameters(self, parameters: TaskParameters) -> Self:
        """See `TaskModel`."""
        other = copy.copy(self)
        other._configure(parameters)
        return other

    def _configure(self, parameters: TaskParameters) -> None:
        check_against_pipeline(self._pipeline, parameters)
        self._parameters = without_nulls(parameters)
        forward = internals.sanitized(self._pipeline, self._parameters)[1]
        self._is_alone = reason_to_compute_alone(self._task, self._pipeline, forward) is not None
        self._draws = draws(self._pipeline, forward)

    # -- encoding

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """See `TaskModel`. Opens the files that rows name, so that an invalid file fails only its own row."""
        return [self._encoded(row) for row in rows]

    def _encoded(self, row: Row) -> Encoded:
        try:
            values = self._opened(row.values)
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

    def _opened(self, values: Mapping[str, Any]) -> dict[str, Any] | RowError:
        opened: dict[str, Any] = {}
        for name, value in values.items():
            is_chat = self._task == "image-text-to-text" and isinstance(value, list)
            if name == "text" and not isinstance(value, str) and not is_chat:
                return RowError(RowErrorCode.WRONG_TYPE, f"input 'text' must be a text for {self._task}, not a list")
            if name == LABELS:
                found = row_labels(value, may_be_empty=bool(self._parameters.get(LABELS)))
            else:
                found = open_media(name, value, self._rules, rate=self._rate)
            if isinstance(found, RowError):
                return found
            opened[name] = found
        if isinstance(opened.get("text"), list):
            chat = open_chat(opened["text"], opened.pop("image"), self._rules)
            return chat if isinstance(chat, RowError) else {"text": chat}
        return opened

    def _prepared(self, row: Row, values: Mapping[str, Any]) -> Encoded:
        # A copy, since pipelines change their parameters.
        arguments, options = call_of(self._task, values, copy.deepcopy(self._parameters))
        call = internals.catch_call(self._pipeline, arguments, options)
        if self._is_whole:
            return Encoded(row, 1, _Prepared(call, ()), shape=row.row_index)
        items = internals.preprocess(self._encoder, call)
        config = self._pipeline.model.config
        tokens = sum(num_tokens(item, config) for item in items)
        error = self._unusable(items)
        if error is not None:
            return Encoded(row, tokens, None, error)
        return Encoded(row, tokens, _Prepared(call, items), shape=self._shape(row, items))

    def _shape(self, row: Row, items: Sequence[Mapping[str, Any]]) -> Hashable:
        if self._is_alone:
            return row.row_index
        # Items of a chunked pipeline are grouped by their own shapes, across rows.
        return None if self._is_chunked else shape_of(items[0])

    def _unusable(self, items: Sequence[Mapping[str, Any]]) -> RowError | None:
        if not items:
            return RowError(RowErrorCode.EMPTY_ROW, "there is nothing in the row to compute")
        for ids in (ids for item in items for ids in token_ids(item)):
            num_tokens = ids.shape[-1]
            largest_id = int(ids.max()) if num_tokens else 0
            error = token_fault(num_tokens, largest_id, most_tokens=self._longest, num_ids=self._num_ids)
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

    def forward(self, collated: Sequence[_Group]) -> list[tuple[_Group, Any]]:
        """See `TaskModel`.

        Returns:
            Each group with what the pipeline's `_forward` returned for it, on the device.
        """
        return [(group, self._computed(group)) for group in collated]

    def _computed(self, group: _Group) -> Any:
        with internals.fixed_randomness(self._device) if self._draws else nullcontext():
            return self._output(group)

    def _output(self, group: _Group) -> Any:
        if group.inputs is not None:
            return internals.compute(self._pipeline, moved(group.inputs, self._device), group.call.forward)
        outputs = []
        for item in internals.preprocess(self._pipeline, group.call):
            found = internals.compute(self._pipeline, moved(item, self._device), group.call.forward)
            outputs.append(moved(found, torch.device("cpu")))
        return outputs

    # -- decoding

    def decode(self, batch: Sequence[Encoded], outputs: Sequence[tuple[_Group, Any]]) -> list[Any]:
        """See `TaskModel`."""
        found: list[dict[int, Any]] = [{} for _ in batch]
        for group, computed in outputs:
            for (place, number), output in zip(group.places, self._parts(group, computed), strict=True):
                found[place][number] = output
        return [
            self._read(one.features.call, [parts[number] for number in sorted(parts)])
            for one, parts in zip(batch, found, strict=True)
        ]

    def _parts(self, group: _Group, computed: Any) -> Iterator[Any]:
        outputs = moved(computed, torch.device("cpu"))
        if len(group.places) == 1:
            yield outputs
            return
        for position in range(len(group.places)):
            yield cut(outputs, position, len(group.places))

    def _read(self, call: Call, parts: list[Any]) -> Any:
        if self._is_whole:
            [parts] = parts
        if self._is_chunked:
            for part in parts:
                part.pop("is_last", None)
        outputs = parts if self._is_chunked else parts[0]
        return json_value(self._pipeline.postprocess(outputs, **call.postprocess))


def _most_tokens_of_a_row(model: PreTrainedModel, tokenizer: Any) -> int | None:
    """Most token ids of a row that a model accepts, or None if unknown; with a tokenizer, its limit counts too.

    If a pipeline truncates texts, or replaces an image by many ids, its tokenizer's own limit does not apply.
    """
    try:
        return position_limit(model) if tokenizer is None else longest_row(model, tokenizer)
    except ValueError:  # a model with several text inputs has no single limit
        return None


def _num_ids(model: PreTrainedModel) -> int | None:
    """Number of rows of the model's token embedding table, or None if it has none."""
    embeddings = input_embeddings(model)
    return None if embeddings is None else embeddings.num_embeddings
