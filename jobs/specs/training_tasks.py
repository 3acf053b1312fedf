"""What each training task learns from: the inputs of a row, and which of them is the answer. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskName = Literal[
    "text-classification", "token-classification", "text-generation", "image-classification",
    "automatic-speech-recognition",
]  # fmt: skip
"""What a spec may name: the names in `TRAINING_TASKS`, spelled out for type checkers and the API's document."""


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """One training task by transformers' pipeline name."""

    name: TaskName
    inputs: tuple[str, ...]
    """Names a row must bring; `data.columns` maps the user's columns onto them."""
    optional: tuple[str, ...] = ()
    """Names a row may bring as well."""
    label: str | None = None
    """The input that holds a class, or a list of one class for each token; its values become the model's labels."""
    metrics: tuple[str, ...] = ()
    """What an evaluation finds beside `eval_loss`, without the prefix `eval_`."""
    cuts_texts: bool = True
    """Whether `data.max_length` says something of its rows."""
    has_lengths: bool = True
    """Whether its rows have a length, by which they can be grouped."""


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
"""Every training task by name."""
