"""Join the prepared items of several rows into one batch, and split the outputs of a batch into those of its rows.

Items are joined only if all tensors have equal shapes. Nothing is padded, so that a row's output does not depend on the
other rows. An item is what a pipeline's `preprocess` returns: tensors whose first axis is the batch, and other values.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

_READ_OF_THE_FIRST = ("candidate_labels",)
"""Values that a pipeline reads from the first row of a batch, so that they must be equal in all rows."""
_NEVER_READ = ("past_key_values",)
_KEPT_AS_A_LIST = ("token_timestamps",)
"""Lists with an entry per row; a split row keeps its entry as a list of length one."""
_NOTHING = object()
_PATCH_PIXELS = 16  # width of a patch in most vision models
_WAVE_SAMPLES = 320  # samples of a raw wave at 16 kHz that become one vector
_SPECTROGRAM_NUMBERS = 160  # numbers of a spectrogram that become one vector


def shape_of(item: Mapping[str, Any]) -> Hashable:
    """Key of an item; items with equal keys can be joined."""
    return tuple(sorted((str(name), _kind(name, value)) for name, value in item.items()))


def _kind(name: str, value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)}"
    if isinstance(value, Mapping):
        return str(shape_of(value))
    return f"={value!r}" if name in _READ_OF_THE_FIRST else ""


def join(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join items of equal shapes: tensors along their first axis, all other values as a list."""
    joined: dict[str, Any] = {}
    for name, first in items[0].items():
        values = [item[name] for item in items]
        if isinstance(first, torch.Tensor) and first.ndim:
            joined[name] = torch.cat(values)
        elif isinstance(first, Mapping):
            joined[name] = join(values)
        else:
            joined[name] = values
    return joined


def cut(outputs: Any, position: int, num_rows: int) -> Any:
    """One row's part of a batch's outputs, in the form that the outputs of a batch with only that row have.

    Args:
        outputs: What a pipeline's `_forward` returned, on the CPU.
        position: Position of the row in the batch.
        num_rows: Number of rows in the batch.

    Raises:
        ValueError: The outputs do not have an entry for each row.
    """
    found = _cut("", outputs, position, num_rows)
    if found is _NOTHING:
        raise ValueError("the outputs of a batch cannot be split into those of its rows")
    return found


def _cut(name: str, value: Any, position: int, num_rows: int) -> Any:
    """One row's part of a value; `_NOTHING` if the value does not have an entry for each row."""
    if isinstance(value, torch.Tensor):
        return value[position : position + 1] if value.ndim and value.shape[0] == num_rows else _NOTHING
    if isinstance(value, Mapping):
        return _cut_fields(value, position, num_rows)
    if isinstance(value, list):
        if name == "target_sizes" and len(value) == 1:  # keypoint matching wraps the sizes of all rows in one list
            return [value[0][position]]
        if len(value) != num_rows:
            return _NOTHING
        return value[position : position + 1] if name in _KEPT_AS_A_LIST else value[position]
    if isinstance(value, tuple):
        parts = [_cut("", inner, position, num_rows) for inner in value]
        return _NOTHING if any(part is _NOTHING for part in parts) else tuple(parts)
    return _NOTHING


def _cut_fields(value: Mapping[str, Any], position: int, num_rows: int) -> Any:
    """One row's part of a mapping. Fields without an entry for each row (such as a loss) are omitted; a `postprocess`
    that needs one fails, and its row is then computed alone."""
    parts = {name: _cut(name, inner, position, num_rows) for name, inner in value.items()}
    found = {name: part for name, part in parts.items() if part is not _NOTHING}
    if not isinstance(value, ModelOutput):
        return found
    if next(iter(parts), None) not in found:  # some pipelines read the first field by its position
        return _NOTHING
    return ModelOutput(found)  # a model's own class rejects names that its pipeline adds


def moved(value: Any, device: torch.device) -> Any:
    """A copy of the structure with its tensors on a device; containers are new, since pipelines change them."""
    if isinstance(value, torch.Tensor):
        # Copies to the CPU are blocking, since their values are read at once.
        return value.to(device, non_blocking=device.type != "cpu")
    if isinstance(value, ModelOutput):
        return ModelOutput({name: moved(inner, device) for name, inner in value.items() if name not in _NEVER_READ})
    if isinstance(value, dict):
        return {name: moved(inner, device) for name, inner in value.items() if name not in _NEVER_READ}
    if isinstance(value, Mapping):  # a transformers class, which a pipeline may check with isinstance
        return UserDict({name: moved(inner, device) for name, inner in value.items()})
    if type(value) in (list, tuple):
        return type(value)(moved(inner, device) for inner in value)
    return value


def token_ids(item: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The token ids anywhere in an item."""
    for name, value in item.items():
        if name == "input_ids" and isinstance(value, torch.Tensor):
            yield value
        for inner in value if isinstance(value, list) else (value,):
            if isinstance(inner, Mapping):
                yield from token_ids(inner)


def num_tokens(item: Mapping[str, Any], config: PretrainedConfig) -> int:
    """Approximate number of vectors that a model computes for an item: token ids, image patches, audio frames."""
    found = sum(ids.numel() for ids in token_ids(item))
    vision = getattr(config, "vision_config", config)
    patch = getattr(vision, "patch_size", None)
    patch = patch if isinstance(patch, int) and patch > 0 else _PATCH_PIXELS
    for name, value in item.items():
        if isinstance(value, Mapping):
            found += num_tokens(value, config) - sum(ids.numel() for ids in token_ids(value))
        elif isinstance(value, torch.Tensor):
            if name.startswith("pixel_values"):
                found += value.numel() // (3 * patch * patch)
            elif value.is_floating_point():
                is_wave = name == "input_values" and value.ndim == 2
                found += value.numel() // (_WAVE_SAMPLES if is_wave else _SPECTROGRAM_NUMBERS)
    return max(1, found)
