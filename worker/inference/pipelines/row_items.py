"""Prepare rows as their pipelines do, and say in plain words what a pipeline or its model would reject.

The videos of rows are read here, before a pipeline opens their files itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.access.video_models import fixed_num_frames
from jobs.config.access_rules import AccessRules
from jobs.data.rows import RowError, RowErrorCode
from worker.inference.pipelines.joined_items import token_ids
from worker.inference.pipelines.open_pipeline import VIDEOS
from worker.models import transformers_internals as internals
from worker.models.media.fast_images import ResizedFirst
from worker.models.media.videos import read_frames
from worker.models.transformers_internals import Call

_CAPTIONS = "image-text-to-text"


def prepare_row(encoder: Any, call: Call, rules: AccessRules) -> list[Mapping[str, Any]] | RowError:
    """The items of a row, or the reason why it has none.

    Args:
        encoder: The pipeline's copy for the thread; see `for_encoding`.
        call: The parsed call for the row.
        rules: Their `max_image_pixels` limits the frames of a video.
    """
    if encoder.task == VIDEOS and encoder.video_processor is None:
        frames = _frames(encoder, call.inputs, rules, **call.preprocess)
        if isinstance(frames, RowError):
            return frames
        return [encoder.image_processor(frames, return_tensors="pt").to(encoder.dtype)]
    if encoder.task == _CAPTIONS and isinstance(call.inputs, Mapping):
        return _with_image(encoder, call)
    return internals.preprocess(encoder, call)


def _frames(
    encoder: Any, path: str, rules: AccessRules, *, num_frames: int | None = None, frame_sampling_rate: int = 1
) -> list[Any] | RowError:
    """The frames that the pipeline selects: the first ones, or every n-th."""
    config = encoder.model.config
    if num_frames is None:
        num_frames = config.num_frames
    positions = np.linspace(0, num_frames * frame_sampling_rate - 1, num=num_frames, dtype=np.int64)
    processor = encoder.image_processor
    convert = processor.resized if isinstance(processor, ResizedFirst) else lambda image: image
    found = read_frames(path, positions.tolist(), max_pixels=rules.max_image_pixels, convert=convert)
    if isinstance(found, RowError) or len(found) == num_frames or fixed_num_frames(config.to_dict()) is None:
        return found
    reason = f"it has only {len(found)} of the {num_frames} frames that the model needs"
    return RowError(RowErrorCode.INVALID_VIDEO, f"input 'video' is too short: {reason}")


def _with_image(encoder: Any, call: Call) -> list[Mapping[str, Any]] | RowError:
    """The items of a row with a text and an image. In most models' texts, a token stands where the image belongs."""
    token, config = getattr(encoder.processor, "image_token", None), encoder.model.config
    num_places = call.inputs["text"].count(token) if isinstance(token, str) and token else None
    try:
        items = internals.preprocess(encoder, call)
    except ValueError:
        if num_places in (None, 1):
            raise
        return _misplaced(token, num_places)
    placeholder = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if num_places is None or not isinstance(placeholder, int):  # some models have no such token
        return items
    is_placed = any(placeholder in ids for item in items for ids in token_ids(item))  # some processors add the token
    return items if is_placed and num_places <= 1 else _misplaced(token, num_places)


def _misplaced(token: Any, num_places: int | None) -> RowError:
    reason = f"must have '{token}' once, where the image belongs, but has it {num_places} times"
    return RowError(RowErrorCode.INVALID_VALUE, f"input 'text' {reason}; or give a list of chat messages")
