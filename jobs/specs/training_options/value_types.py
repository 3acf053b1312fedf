"""Types of the values of parameters and training arguments, each with the words for error messages."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from jobs.specs.bounds import LONGEST_VALUES_CHARACTERS, MOST_OPTIONS, MOST_VALUES
from jobs.specs.fields import LARGEST_INTEGER
from jobs.specs.training_options.settable import Expected

MOST_TOKENS = 2**20
"""Largest row length in tokens that a job may request; with `padding: max_length` each row is padded to it."""
MOST_STOPS = 16
"""The most stop strings of one generated row."""

BoundedText = Annotated[str, Field(max_length=LONGEST_VALUES_CHARACTERS)]
"""A text; all texts of one spec's parameters together have at most as many characters."""
BoundedTexts = Annotated[list[BoundedText], Field(max_length=MOST_VALUES)]
"""A list of texts; all values of one spec's parameters together are at most as many."""
Flag = Annotated[bool, Expected("true or false")]
Text = Annotated[BoundedText, Expected("a text")]
Number = Annotated[float, Expected("a number")]
NumberFromZero = Annotated[float, Field(ge=0), Expected("a number from 0")]
NumberAboveZero = Annotated[float, Field(gt=0), Expected("a number above 0")]
ShareAboveZero = Annotated[float, Field(gt=0, le=1), Expected("a number above 0 and up to 1")]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1), Expected("a number from 0 and below 1")]
Count = Annotated[int, Field(ge=1), Expected("a whole number from 1")]
CountOrZero = Annotated[int, Field(ge=0), Expected("a whole number from 0")]
BoundedCount = Annotated[int, Field(ge=1, le=LARGEST_INTEGER), Expected(f"a whole number from 1 to {LARGEST_INTEGER}")]
BoundedCountOrZero = Annotated[
    int, Field(ge=0, le=LARGEST_INTEGER), Expected(f"a whole number from 0 to {LARGEST_INTEGER}")
]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), Expected("a 64-bit whole number")]
NumTokens = Annotated[int, Field(ge=1, le=MOST_TOKENS), Expected(f"a whole number from 1 to {MOST_TOKENS}")]
NamedValues = Annotated[dict[str, Any], Field(max_length=MOST_OPTIONS), Expected("a mapping of names to values")]

Truncation = Annotated[
    bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"],
    Expected("true, false or one of longest_first, only_first, only_second, do_not_truncate"),
]
"""transformers' names of ways to cut a row that is too long; `true` means `longest_first`."""
Padding = Annotated[
    bool | Literal["longest", "max_length", "do_not_pad"],
    Expected("true, false, 'longest', 'max_length' or 'do_not_pad'"),
]
ScoreFunction = Annotated[Literal["sigmoid", "softmax", "none"], Expected("one of sigmoid, softmax, none")]
"""Function that turns a classifier's logits into scores."""


def _check_stops(value: str | list[str]) -> str | list[str]:
    if not all([value] if isinstance(value, str) else value):
        raise ValueError("an empty text stops nothing")
    return value


Stops = Annotated[
    BoundedText | Annotated[list[BoundedText], Field(max_length=MOST_STOPS)],
    AfterValidator(_check_stops),
    Expected(f"a text, or a list of at most {MOST_STOPS} texts, none of them empty"),
]


def _check_labels(value: str | list[str]) -> str | list[str]:
    if not (value.replace(",", "").strip() if isinstance(value, str) else value):
        raise ValueError("there is no label")
    return value


Labels = Annotated[
    BoundedText | BoundedTexts,
    AfterValidator(_check_labels),
    Expected("a list of labels, or a text that separates them by commas"),
]


def _check_hypothesis(value: str) -> str:
    """Reject a text without a placeholder for the label, or with any other syntax of `str.format`.

    A width (`{:>2000000000}`) would fill the host's memory; a text without a placeholder is the same for all labels.
    """
    places = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(value) if name is not None]
    if places != [("", "", None)] and not (places and all(place == ("0", "", None) for place in places)):
        raise ValueError("there must be one {}, or only {0}")
    return value


Hypothesis = Annotated[
    BoundedText, AfterValidator(_check_hypothesis), Expected("a text with one {} as the placeholder for the label")
]
