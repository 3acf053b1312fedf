"""What a training task learns from a row: its texts, its words and its classes, each checked by its value alone.

The scheduler looks at every row before a slot is taken, and the worker again while it reads them. No torch here.
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
from jobs.messages import short, shown
from jobs.specs.training_tasks import TrainingTask

CHECKED_INPUTS = ("text", "text_pair", "tokens", "label", "labels")
"""Inputs that are checked by their values; images and sounds are only known once they are opened."""
_NOT_LEARNED = -100
"""The id that torch's cross entropy and transformers pass over."""
_AMBIGUOUS = -1
"""The id of rows without a label in GLUE and SNLI, and elsewhere of a class."""
_WHOLE = re.compile(r"[+-]?\d{1,18}")
_DECIMAL = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")
_SHOWN_CHARACTERS = 40


class RowFlaw(ValueError):
    """A row cannot be learned from; the message says which column holds what, and what to write instead."""


@dataclass(frozen=True, slots=True)
class RowCheck:
    """Looks at the rows of one training."""

    task: TrainingTask
    columns: Mapping[str, str]
    """The task's input name -> the user's column, for messages."""
    names: Sequence[str] | None = None
    """The names of the classes by their ids, where the data set keeps them."""

    def classes(self, values: Mapping[str, Any]) -> list[str | None]:
        """The classes that a row teaches, None for each that it leaves open.

        Args:
            values: The row by the task's input names; those that it does not have are not checked.

        Returns:
            One class for a row, or one for each of its words; empty where the task has no classes.

        Raises:
            RowFlaw: The row cannot be learned from.
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
                    f"column '{column}' holds a chat, and a training reads texts: apply the model's chat template, and "
                    "train on the text that comes out"
                )
            raise RowFlaw(f"column '{column}' must be text for input '{name}', not {_kind(value)}")
        if self.task.name == "automatic-speech-recognition" and not value.strip():
            raise RowFlaw(f"column '{column}' is empty, and there is no sound without a text to learn from")

    def _check_words(self, value: Any) -> None:
        column = self.columns["tokens"]
        if not isinstance(value, list) or not value:
            what = "an empty list" if isinstance(value, list) else _kind(value)
            raise RowFlaw(f"column '{column}' must be a list of words, not {what}")
        for number, word in enumerate(value, start=1):
            if not isinstance(word, str):
                raise RowFlaw(f"column '{column}' must be a list of words, and word {number} is {_kind(word)}")

    def _word_classes(self, label: str, values: Mapping[str, Any]) -> list[str | None]:
        column, labels = self.columns[label], values[label]
        if not isinstance(labels, list):
            raise RowFlaw(f"column '{column}' must be a list with a label for each word, not {_kind(labels)}")
        if "tokens" in values and len(labels) != len(values["tokens"]):
            raise RowFlaw(f"it does not have a label for each of its {len(values['tokens'])} tokens, but {len(labels)}")
        return [self._class(f"column '{column}', word {at},", value) for at, value in enumerate(labels, start=1)]

    def _class(self, where: str, value: Any) -> str | None:
        """The class that a value names; None where the value says that there is none."""
        if value is None or (isinstance(value, float) and math.isnan(value)) or _is_blank(value):
            raise RowFlaw(f"{where} has no label")
        if isinstance(value, bool):
            return str(value)
        if not isinstance(value, str | int | float | Decimal):
            several = "a list of labels" if isinstance(value, list) else _kind(value)
            each = "word" if "tokens" in self.task.inputs else "row"
            raise RowFlaw(f"{where} holds {several}, and task {self.task.name} learns one class for each {each}")
        held = _shown(value)
        if self.names is not None and value in self.names:
            return str(value)
        if isinstance(value, float | Decimal) or (isinstance(value, str) and _DECIMAL.fullmatch(value.strip())):
            raise RowFlaw(
                f"{where} holds {held}, a number with a decimal point: task {self.task.name} learns classes, not "
                "numbers (regression); write classes as names or as whole numbers"
            )
        number = int(value) if isinstance(value, int) or _WHOLE.fullmatch(value.strip()) else None
        if number == _NOT_LEARNED:
            return None
        if self.names is not None:
            return self._named(where, held, number)
        if number == _AMBIGUOUS:
            raise RowFlaw(
                f"{where} holds -1, which says in some data sets that a row has no label, and in others is a class: "
                "write -100 or leave the row out where it has no label, and give a class another name"
            )
        return str(value)

    def _named(self, where: str, held: str, number: int | None) -> str | None:
        """The name of a class by its id."""
        assert self.names is not None
        if number == _AMBIGUOUS:  # as the `datasets` library writes a row without a label
            return None
        if number is None or not 0 <= number < len(self.names):
            raise RowFlaw(f"{where} holds {held}, which is none of the data set's {len(self.names)} classes")
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
    """While inside, what is said of an input names the training's own field."""
    try:
        yield
    except (InvalidInput, InvalidSpec) as error:
        told = error.param or ""
        if not told.startswith("input."):
            raise
        renamed = {"input.columns.": "data.columns.", "input.path": param, "input.": "data."}
        message = error.message
        for old, new in renamed.items():
            message, told = message.replace(old, new), told.replace(old, new)
        raise type(error)(message, param=told) from error
