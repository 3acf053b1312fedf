"""What a runner may be doing, how people are told of it, and how long each may go without progress."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Activity(StrEnum):
    """What one thread or process of a runner does. Waiting for another one is none of these, and has no limit."""

    LOAD = "load"  # a model is brought here and loaded, and the input and the output are opened
    READ = "read"  # a chunk's rows are read
    ENCODE = "encode"  # they are tokenized, their images and audio decoded, and put into batches
    FORWARD = "forward"  # they go through the model
    DECODE = "decode"  # the model's outputs are made into results
    COMMIT = "commit"  # results are stored and recorded
    START = "start"  # a training's processes start: libraries, model, module and rows
    STEP = "step"  # a training step is computed
    EVALUATION = "evaluation"  # a training's weights are evaluated
    CHECKPOINT = "checkpoint"  # a checkpoint is written, or copied into the store
    SAVE = "save"  # the trained model is written and stored


CHUNK_ACTIVITIES = frozenset({Activity.READ, Activity.ENCODE, Activity.FORWARD, Activity.DECODE})
"""Activities whose stall makes their chunk's rows suspect; behind a commit that hangs is the store."""

_FACTORS = {
    Activity.LOAD: 3.0,
    Activity.COMMIT: 2.0,
    Activity.START: 6.0,
    Activity.STEP: 3.0,
    Activity.EVALUATION: 3.0,
    Activity.CHECKPOINT: 6.0,
    Activity.SAVE: 6.0,
}
"""The limit of each activity in multiples of `stall_seconds`; 1.0 for the others."""
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
    """How many seconds each activity may go without progress.

    Args:
        stall_seconds: the setting that all limits follow from.
        own_limits: limits that the operator has set by name, in seconds.
    """
    return {each: own_limits.get(each, stall_seconds * _FACTORS.get(each, 1.0)) for each in Activity}


def in_words(activity: Activity, *, start_row: int | None = None, step: int | None = None) -> str:
    """An activity as a person reads it: `training step 6`, `computing rows from 128`."""
    words = _WORDS[activity]
    if start_row is not None:
        return f"{words} from {start_row}" if activity is not Activity.DECODE else f"{words} of rows from {start_row}"
    if step is None:
        return words
    return f"{words} {step}" if activity is Activity.STEP else f"{words} after step {step}"
