"""Check a training row's texts, words and classes by their values alone.

The scheduler checks every row before the job gets a slot, and the worker checks again while it reads the rows. This
module does not import torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from jobs.data.sources.values import kind_name
from jobs.errors import InvalidInput, InvalidSpec
from jobs.messages import counted, short, shown
from jobs.specs.training_options.training_tasks import TrainingTask

CHECKED_INPUTS = ("text", "text_pair", "tokens", "label", "labels")
"""Inputs that are checked by their values; images and audio can only be checked once they are decoded."""
_NOT_LEARNED = -100
"""The class id that torch's cross entropy and transformers ignore."""
_AMBIGUOUS = -1
"""The class id of rows without a label in GLUE and SNLI; in other data sets, a valid class."""
_WHOLE = re.compile(r"[+-]?\d{1,18}")
_DECIMAL = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")
_SHOWN_CHARACTERS = 40


class RowFlaw(ValueError):
    """A row cannot be used for training; the message names the column, its value, and what to write instead."""


@dataclass(frozen=True, slots=True)
class RowCheck:
    """Checks the rows of one training job."""

    task: TrainingTask
    columns: Mapping[str, str]
    """Maps the task's input names to the user's columns, for messages."""
    names: Sequence[str] | None = None
    """The class names, indexed by class id; None if the data set does not store them."""

    def classes(self, values: Mapping[str, Any]) -> list[str | None]:
        """The classes that a row is labeled with; None for a label that training ignores.

        Args:
            values: The row's values by the task's input names; missing inputs are not checked.

        Returns:
            One class for the row, or one for each of its words; an empty list if the task has no classes.

        Raises:
            RowFlaw: The row cannot be used for training.
        """
        for name in ("text", "text_pair"):
            if name in values:
                self._check_text(name, values[name])
        if "tokens" in values:
            self._check_words(values["tokens"])
        label = self.task.label
        if label is None or label not in values:
            return []
        if "tokens" not in self.task.inputs:
            return [self._class(f"column '{self.columns[label]}'", values[label])]
        return self._word_classes(label, values)

    def _check_text(self, name: str, value: Any) -> None:
        column = self.columns[name]
        if not isinstance(value, str):
            if _is_chat(value):
                raise RowFlaw(
                    f"column '{column}' contains a chat, but a training needs texts; apply the model's chat template "
                    "first, and train on its output"
                )
            raise RowFlaw(f"column '{column}' must be text for input '{name}', not {_kind(value)}")
        if self.task.name == "automatic-speech-recognition" and not value.strip():
            raise RowFlaw(f"column '{column}' is empty, but each recording needs a text")

    def _check_words(self, value: Any) -> None:
        column = self.columns["tokens"]
        if not isinstance(value, list) or not value:
            what = "an empty list" if isinstance(value, list) else _kind(value)
            raise RowFlaw(f"column '{column}' must be a list of words, not {what}")
        for number, word in enumerate(value, start=1):
            if not isinstance(word, str):
                raise RowFlaw(f"column '{column}' must be a list of words, but word {number} is {_kind(word)}")

    def _word_classes(self, label: str, values: Mapping[str, Any]) -> list[str | None]:
        column, labels = self.columns[label], values[label]
        if not isinstance(labels, list):
            raise RowFlaw(f"column '{column}' must be a list with a label for each word, not {_kind(labels)}")
        if "tokens" in values and len(labels) != len(values["tokens"]):
            raise RowFlaw(f"the row has {counted(len(values['tokens']), 'token')} but {counted(len(labels), 'label')}")
        return [self._class(f"column '{column}', word {at},", value) for at, value in enumerate(labels, start=1)]

    def _class(self, where: str, value: Any) -> str | None:
        """The class that a value names; None if the value says that training must ignore it."""
        if value is None or (isinstance(value, float) and math.isnan(value)) or _is_blank(value):
            raise RowFlaw(f"{where} has no label")
        if isinstance(value, bool):
            return str(value)
        if not isinstance(value, str | int | float | Decimal):
            several = "a list of labels" if isinstance(value, list) else _kind(value)
            each = "word" if "tokens" in self.task.inputs else "row"
            raise RowFlaw(f"{where} contains {several}, but task {self.task.name} needs one class for each {each}")
        written = _shown(value)
        if self.names is not None and value in self.names:
            return str(value)
        if isinstance(value, float | Decimal) or (isinstance(value, str) and _DECIMAL.fullmatch(value.strip())):
            raise RowFlaw(
                f"{where} contains {written}, a number with a decimal point, but task {self.task.name} predicts "
                "classes, not numbers (regression); write classes as names or as whole numbers"
            )
        number = int(value) if isinstance(value, int) or _WHOLE.fullmatch(value.strip()) else None
        if number == _NOT_LEARNED:
            return None
        if self.names is not None:
            return self._named(where, written, number)
        if number == _AMBIGUOUS:
            raise RowFlaw(
                f"{where} contains -1, which means no label in some data sets and is a class in others; write -100 or "
                "leave the row out if it has no label, or else give the class another name"
            )
        return str(value)

    def _named(self, where: str, written: str, number: int | None) -> str | None:
        """The class name of a class id."""
        assert self.names is not None
        if number == _AMBIGUOUS:  # the `datasets` library writes -1 for a row without a label
            return None
        if number is None or not 0 <= number < len(self.names):
            raise RowFlaw(f"{where} contains {written}, which is not one of the data set's {len(self.names)} classes")
        return self.names[number]


def _kind(value: Any) -> str:
    return "a text" if isinstance(value, str) else kind_name(value)


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _is_chat(value: Any) -> bool:
    messages = value if isinstance(value, list) else [value]
    return bool(messages) and all(isinstance(one, dict) and ("role" in one or "from" in one) for one in messages)


def _shown(value: Any) -> str:
    return shown(value, _SHOWN_CHARACTERS) if isinstance(value, str) else short(str(value), _SHOWN_CHARACTERS)


@contextmanager
def naming_data(param: str) -> Iterator[None]:
    """Make errors inside the block name the training spec's fields (`data.*`) instead of `input.*`."""
    try:
        yield
    except (InvalidInput, InvalidSpec) as error:
        field = error.param or ""
        if not field.startswith("input."):
            raise
        renamed = {"input.columns.": "data.columns.", "input.path": param, "input.": "data."}
        message = error.message
        for old, new in renamed.items():
            message, field = message.replace(old, new), field.replace(old, new)
        raise type(error)(message, param=field) from error
