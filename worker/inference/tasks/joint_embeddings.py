"""Embeddings by a model of texts and images, such as CLIP or SigLIP: one float32 vector for each row, in one space.

A row has a text or an image. Its vector is what the model's `get_text_features` or `get_image_features` returns for
this row alone: only rows whose tensors have equal shapes share a batch, so nothing is padded for the batch's sake.

Shapes: B rows, E dimensions of a row's vector.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedTokenizerBase

from jobs.access.joint_models import check_joint_parameters, has_image_processor
from jobs.access.sentence_folder import too_many_dimensions
from jobs.config.access_rules import AccessRules
from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.messages import one_line
from jobs.specs.parameters.text_tasks import EmbeddingsParameters
from worker.device import is_out_of_memory, is_poisoned, tensor_bytes
from worker.inference.pipelines.joined_items import moved, num_tokens, shape_of
from worker.inference.tasks.multi_input import Parts, by_row, collate_items, forward_inputs, joined, read_inputs
from worker.inference.tasks.pooling import split_rows
from worker.models.image_processor import pillow_processor
from worker.models.load import ModelFolder, load_error, load_tokenizer, load_weights, memory_bytes
from worker.models.media.fast_images import find_fast_images
from worker.models.media.open_media import open_media
from worker.models.task_model import Encoded
from worker.models.texts.limits import longest_row, num_token_ids, outside_vocabulary, token_error

logger = logging.getLogger(__name__)

_FIXED_LENGTH = frozenset({"siglip", "siglip2"})
"""Model types that were trained with all texts padded to the same length, and that see the padding."""


@dataclass(frozen=True, slots=True)
class _Encoder:
    """What turns rows into tensors. Each thread has its own, since calls change a tokenizer's state."""

    tokenizer: PreTrainedTokenizerBase
    images: Any
    """The image processor; None if the model's folder has none."""


class JointEmbeddings:
    """A `TaskModel` for models of texts and images."""

    TASK = EmbeddingsParameters.TASK

    def __init__(
        self,
        source: ModelFolder,
        parameters: EmbeddingsParameters,
        *,
        device: torch.device,
        dtype: torch.dtype,
        rules: AccessRules,
    ) -> None:
        """
        Args:
            source: The model's files.
            parameters: The parameters of the job.
            device: The device that the model computes on.
            dtype: The dtype that the model computes in.
            rules: Access rules; their `input_roots` limit the files that rows may name.

        Raises:
            InvalidModel: The model cannot be loaded, or its vectors of texts and images are not of one space.
            InvalidSpec: A parameter is invalid.
        """
        self._source = source
        self._device = device
        self._rules = rules
        self.model = load_weights(source, AutoModel, task=self.TASK, device=device, dtype=dtype)
        self._features: Mapping[bool, Callable[..., Any]] = {
            False: self.model.get_text_features,
            True: self.model.get_image_features,
        }
        self._names = {is_image: set(inspect.signature(call).parameters) for is_image, call in self._features.items()}
        processor = _load_processor(source)
        if processor is not None:
            logger.info("images are prepared by %s", type(processor).__name__)
        self._fast_images = find_fast_images(processor, device, self.model.dtype)
        if self._fast_images is not None:
            processor = self._fast_images.processor(processor)
        self._encoder = _Encoder(load_tokenizer(source), processor)
        self._encoders: dict[int, _Encoder] = {}
        self._longest = longest_row(self.model, self._encoder.tokenizer)
        self._is_fixed = self.model.config.model_type in _FIXED_LENGTH and self._longest is not None
        text_config = self.model.config.get_text_config()
        self._num_ids = num_token_ids(self.model) or getattr(text_config, "vocab_size", None)
        self.memory_bytes = memory_bytes(self.model)
        self._truncates, self._is_many = True, False
        self._num_dimensions = self._probe()
        self._configure(parameters)

    def with_parameters(self, parameters: EmbeddingsParameters) -> Self:
        """See `TaskModel`."""
        other = copy.copy(self)
        other._configure(parameters)
        return other

    def for_thread(self, number: int) -> Self:
        """See `EncodesRowByRow`. Copying tokenizers takes long, so the copies are kept for later leases.

        Each thread gets a copy, also the first: it encodes while the others still copy the original.
        """
        if number not in self._encoders:
            self._encoders[number] = copy.deepcopy(self._encoder)
        other = copy.copy(self)
        other._encoder = self._encoders[number]
        return other

    def _configure(self, parameters: EmbeddingsParameters) -> None:
        check_joint_parameters(parameters)
        if parameters.dimensions is not None and parameters.dimensions > self._num_dimensions:
            raise too_many_dimensions(self._num_dimensions)
        self._dimensions = parameters.dimensions
        self._truncates = parameters.truncate
        self._is_normalized = bool(parameters.normalize)
        self._is_many = parameters.inputs == "any"

    def _probe(self) -> int:
        """Number of dimensions of a row's vector, found by computing the vectors of a text and of an image.

        Raises:
            InvalidModel: The model does not compute such vectors, or those of images have other dimensions.
        """
        row = Row(0, None, {})
        try:
            encoded = [self._encoded_text(row, "a")]
            if self._encoder.images is not None:
                encoded.append(self._encoded_pixels(row, np.zeros((48, 64, 3), np.uint8)))
            with torch.inference_mode():
                shapes = {tuple(self._pooled(self.collate([one]).batches[0]).shape) for one in encoded}
        except Exception as error:
            if is_out_of_memory(error) or is_poisoned(error):
                raise
            raise self._source.invalid(f"it cannot compute vectors of texts and images: {one_line(error)}") from error
        if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
            raise self._source.invalid("its vectors of texts and images do not have the same number of dimensions")
        [(_, num_dimensions)] = shapes
        return num_dimensions

    # -- encoding

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """See `TaskModel`. Opens the files that rows name, so that an invalid file fails only its own row."""
        return [self._encoded(row) for row in rows]

    def _encoded(self, row: Row) -> Encoded:
        text, image = row.values.get("text"), row.values.get("image")
        if text is not None and image is not None:
            message = "the row has a text and an image; it must have only one of them"
            return Encoded(row, 0, None, RowError(RowErrorCode.INVALID_VALUE, message))
        if image is not None:
            return self._encoded_image(row, image)
        if text is None:
            return Encoded(row, 0, None, RowError(RowErrorCode.NULL_VALUE, "the row has neither a text nor an image"))
        if self._is_many:
            return self._encoded_inputs(row)
        if not isinstance(text, str):
            message = f"text must be a text, not a {type(text).__name__}"
            return Encoded(row, 0, None, RowError(RowErrorCode.WRONG_TYPE, message))
        return self._encoded_text(row, text)

    def _encoded_image(self, row: Row, image: Any) -> Encoded:
        if self._encoder.images is None:
            raise self._source.invalid("has no preprocessor_config.json, which images need")
        opened = open_media("image", image, self._rules)
        return Encoded(row, 0, None, opened) if isinstance(opened, RowError) else self._encoded_pixels(row, opened)

    def _encoded_pixels(self, row: Row, image: Any) -> Encoded:
        item = self._taken(self._encoder.images(images=image, return_tensors="pt"), is_image=True)
        tokens = num_tokens(item, self.model.config)
        return Encoded(row, tokens, [item], shape=("image", shape_of(item)), num_bytes=tensor_bytes(item))

    def _encoded_inputs(self, row: Row) -> Encoded:
        inputs = read_inputs(row, has_prefix=False)
        if isinstance(inputs, RowError):
            return Encoded(row, 0, None, inputs)
        return joined(
            row,
            [self._encoded_text(row, one) if isinstance(one, str) else self._encoded_ids(row, one) for one in inputs],
        )

    def _encoded_ids(self, row: Row, ids: list[int]) -> Encoded:
        if self._num_ids is None:  # unchecked ids could make a whole GPU process unusable
            message = "this model takes no token ids, because the number of its token embeddings is unknown"
            return Encoded(row, 0, None, RowError(RowErrorCode.UNKNOWN_TOKEN, message))
        error = outside_vocabulary(ids, self._num_ids)
        if error is not None:
            return Encoded(row, 0, None, error)
        if self._truncates:
            ids = ids[: self._longest]
        found = self._encoder.tokenizer.pad(
            {"input_ids": [ids]},
            padding="max_length" if self._is_fixed else False,
            max_length=self._longest if self._is_fixed else None,
            return_tensors="pt",
        )
        return self._encoded_tokens(row, found)

    def _encoded_text(self, row: Row, text: str) -> Encoded:
        truncates = self._truncates and self._longest is not None
        try:
            found = self._encoder.tokenizer(
                text,
                truncation=truncates,
                max_length=self._longest if truncates or self._is_fixed else None,
                padding="max_length" if self._is_fixed else False,
                return_tensors="pt",
                verbose=False,
            )
        except (UnicodeError, TypeError, ValueError) as error:
            message = f"the text cannot be tokenized: {one_line(error)}"
            return Encoded(row, 0, None, RowError(RowErrorCode.INVALID_TEXT, message))
        return self._encoded_tokens(row, found)

    def _encoded_tokens(self, row: Row, found: Mapping[str, Any]) -> Encoded:
        item = self._taken(found, is_image=False)
        ids = item["input_ids"]
        tokens = ids.shape[-1]
        largest_id = int(ids.max()) if tokens else 0
        flaw = token_error(tokens, largest_id, most_tokens=self._longest, num_ids=self._num_ids)
        return Encoded(row, tokens, None if flaw else [item], flaw, shape=("text", shape_of(item)))

    def _taken(self, found: Mapping[str, Any], *, is_image: bool) -> dict[str, torch.Tensor]:
        """The tensors that the model takes, of those that a tokenizer or processor made."""
        return {name: value for name, value in found.items() if name in self._names[is_image]}

    # -- computing

    def collate(self, batch: Sequence[Encoded]) -> Parts:
        """See `TaskModel`. Inputs of one row may have different shapes."""
        return collate_items(batch, pin=self._device.type == "cuda")

    def forward(self, collated: Parts) -> torch.Tensor:
        """See `TaskModel`.

        Returns:
            Vectors, (B, E) float32; one for each input if rows may have several.
        """
        return forward_inputs(collated, self._vectors)

    def _vectors(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        vectors_BE = self._pooled(inputs).float()
        if self._dimensions is not None:
            vectors_BE = vectors_BE[:, : self._dimensions]
        return nn.functional.normalize(vectors_BE, p=2, dim=-1) if self._is_normalized else vectors_BE

    def _pooled(self, collated: Mapping[str, torch.Tensor]) -> torch.Tensor:
        inputs = {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in moved(dict(collated), self._device).items()
        }
        if self._fast_images is not None:
            self._fast_images.replace_bytes(inputs)
        found: torch.Tensor = self._features["input_ids" not in collated](**inputs).pooler_output
        return found

    def decode(self, batch: Sequence[Encoded], outputs: torch.Tensor) -> list[Any]:
        """See `TaskModel`."""
        found = split_rows(outputs)
        if not self._is_many:
            return found
        return [row if isinstance(row, RowError) else np.stack(row) for row in by_row(batch, found)]


def _load_processor(source: ModelFolder) -> Any | None:
    """The model's image processor, or None if its folder has none.

    Raises:
        InvalidModel: The processor cannot be loaded.
    """
    if not has_image_processor(source.path):
        return None
    try:
        return pillow_processor(source)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise load_error(source.name, error, what="its image processor cannot be loaded") from error
