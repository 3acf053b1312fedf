"""The activities of a runner, their names in messages, and how long each may go without progress."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Activity(StrEnum):
    """What a thread or process of a runner does. Waiting for another thread is not an activity and has no limit."""

    LOAD = "load"  # a model is fetched and loaded, and the input and output are opened
    READ = "read"  # a chunk's rows are read
    ENCODE = "encode"  # the rows are tokenized, their images and audio are decoded, and batches are formed
    FORWARD = "forward"  # the batches go through the model
    DECODE = "decode"  # the model's outputs are converted to results
    COMMIT = "commit"  # results are stored and recorded
    START = "start"  # a training's processes start: libraries, model, module and rows
    STEP = "step"  # a training step is computed
    EVALUATION = "evaluation"  # a training's weights are evaluated
    CHECKPOINT = "checkpoint"  # a checkpoint is written, or copied into the store
    SAVE = "save"  # the trained model is written and stored


CHUNK_ACTIVITIES = frozenset({Activity.READ, Activity.ENCODE, Activity.FORWARD, Activity.DECODE})
"""Activities whose stall may be caused by rows of the chunk. A commit that hangs is caused by the store instead."""

_FACTORS = {
    Activity.LOAD: 3.0,
    Activity.COMMIT: 2.0,
    Activity.START: 6.0,
    Activity.STEP: 3.0,
    Activity.EVALUATION: 3.0,
    Activity.CHECKPOINT: 6.0,
    Activity.SAVE: 6.0,
}
"""The limit of each activity as a multiple of `stall_seconds`; 1.0 for those not listed."""
_WORDS = {
    Activity.LOAD: "loading the model",
    Activity.READ: "reading rows",
    Activity.ENCODE: "encoding rows",
    Activity.FORWARD: "computing rows",
    Activity.DECODE: "decoding outputs",
    Activity.COMMIT: "recording results",
    Activity.START: "starting the training",
    Activity.STEP: "training step",
    Activity.EVALUATION: "evaluation",
    Activity.CHECKPOINT: "checkpoint",
    Activity.SAVE: "saving the trained model",
}


def stall_limits(stall_seconds: float, own_limits: Mapping[Activity, float]) -> dict[Activity, float]:
    """The number of seconds that each activity may go without progress.

    Args:
        stall_seconds: The setting from which the default limits are computed.
        own_limits: Limits in seconds that the operator has set for single activities.
    """
    return {each: own_limits.get(each, stall_seconds * _FACTORS.get(each, 1.0)) for each in Activity}


def in_words(activity: Activity, *, start_row: int | None = None, step: int | None = None) -> str:
    """An activity in words, such as `training step 6` or `computing rows from 128`."""
    words = _WORDS[activity]
    if start_row is not None:
        return f"{words} from {start_row}" if activity is not Activity.DECODE else f"{words} of rows from {start_row}"
    if step is None:
        return words
    return f"{words} {step}" if activity is Activity.STEP else f"{words} after step {step}"
