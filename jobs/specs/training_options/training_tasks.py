"""The training tasks: the inputs of their rows, the label, and the metrics. Must not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskName = Literal[
    "text-classification", "token-classification", "text-generation", "image-classification",
    "automatic-speech-recognition",
]  # fmt: skip
"""The names in `TRAINING_TASKS`, written out for type checkers and the API's schema."""


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """One training task, by the name of transformers' pipeline."""

    name: TaskName
    inputs: tuple[str, ...]
    """Names of the inputs that a row must have; `data.columns` maps them to the user's columns."""
    optional: tuple[str, ...] = ()
    """Names of the inputs that a row may have."""
    label: str | None = None
    """The input with the class, or with a list of classes, one for each word. Its values become the model's labels."""
    metrics: tuple[str, ...] = ()
    """Names of the metrics of an evaluation in addition to `eval_loss`, without the prefix `eval_`."""
    cuts_texts: bool = True
    """Whether `data.max_length` applies to the task's rows."""
    has_lengths: bool = True
    """Whether rows have a length by which they can be grouped."""


_ALL = (
    TrainingTask("text-classification", ("text", "label"), ("text_pair",), label="label", metrics=("accuracy", "f1")),
    TrainingTask("token-classification", ("tokens", "labels"), label="labels", metrics=("accuracy", "f1")),
    TrainingTask("text-generation", ("text",), metrics=("perplexity",), has_lengths=False),
    TrainingTask(
        "image-classification",
        ("image", "label"),
        label="label",
        metrics=("accuracy", "f1"),
        cuts_texts=False,
        has_lengths=False,
    ),
    TrainingTask("automatic-speech-recognition", ("audio", "text"), metrics=("wer", "cer"), cuts_texts=False),
)
TRAINING_TASKS: dict[TaskName, TrainingTask] = {task.name: task for task in _ALL}
"""All training tasks by name."""
