"""Computes the encoder of a model that generates, such as Whisper, for a few rows of a batch at a time, on CPUs.

Generating is fastest for many rows at once, because each step reads all weights. An encoder is fastest for so few rows
that its activations fit the CPU's caches: for 2 instead of 16 rows of Whisper, oneDNN's linear layers take 3/4 of the
time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from worker.inference.pipelines.joined_items import num_tokens
from worker.models.batching import CPU_MAX_TOKENS


def compute_encoder_in_parts(model: PreTrainedModel) -> None:
    """Make the encoder of an encoder-decoder model compute `CPU_MAX_TOKENS` at a time; does nothing for other models.

    Args:
        model: A model that generates, on a CPU. Its encoder's outputs are the same but for rounding.
    """
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        encoder.forward = _in_parts(encoder.forward, model)


def _in_parts(forward: Callable[..., Any], model: PreTrainedModel) -> Callable[..., Any]:
    def compute(*args: Any, **named: Any) -> Any:
        inputs = named.get(model.main_input_name)
        if args or not isinstance(inputs, torch.Tensor) or not len(inputs):
            return forward(*args, **named)
        most = max(1, CPU_MAX_TOKENS // num_tokens({model.main_input_name: inputs[:1]}, model.config))
        if len(inputs) <= most:
            return forward(**named)
        starts = range(0, len(inputs), most)
        return _joined([forward(**_rows(named, start, start + most, len(inputs))) for start in starts])

    return compute


def _rows(named: Mapping[str, Any], start: int, stop: int, num_rows: int) -> dict[str, Any]:
    """The arguments for some rows; what is not of rows stays as it is."""
    return {
        name: value[start:stop] if isinstance(value, torch.Tensor) and value.shape[:1] == (num_rows,) else value
        for name, value in named.items()
    }


def _joined(parts: list[Any]) -> Any:
    """Join tensors of rows, and mappings and tuples of them; None stays None."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(parts)
    if isinstance(first, ModelOutput):
        return type(first)(**{name: _joined([part[name] for part in parts]) for name in first})
    if isinstance(first, tuple):
        return tuple(_joined(list(each)) for each in zip(*parts, strict=True))
    return first
