"""The base of what a user may set by name: pydantic models whose fields say in words which values they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.messages import shown

_LONGEST_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Expected:
    """Stands in the annotation of a type and says what its values are, in words that follow "must be"."""

    words: str


class WrongName(NamedTuple):
    """A name in a user's mapping, and what is wrong with it."""

    name: str
    message: str | None
    """A phrase to follow the name; None where the model has no field of this name."""


class Settable(BaseModel):
    """A set of values that a user gives by name. A field's docstring describes it; its annotation has an `Expected`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def given(self) -> dict[str, Any]:
        """What the user set, by name. Defaults are not part of it."""
        values = {**self.__dict__, **(self.model_extra or {})}
        return {name: value for name, value in values.items() if name in self.model_fields_set}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the fields, those that the class itself adds first."""
        return tuple(sorted(cls.model_fields, key=lambda name: name not in cls.__annotations__))

    @classmethod
    def expected(cls, name: str) -> str:
        """What the values of a field are, in words."""
        return next(_words(cls.model_fields[name].rebuild_annotation()))

    @classmethod
    def wrong_name(cls, error: ValidationError, given: Mapping[str, Any]) -> WrongName:
        """The name that a failed validation is about.

        Args:
            error: What pydantic found.
            given: What was validated.
        """
        found = {str(one["loc"][0]): one["type"] for one in reversed(error.errors(include_url=False))}
        missing = next((name for name, kind in found.items() if kind == "missing"), None)
        name = next((name for name in reversed(list(given)) if name in found), missing)
        if name is None:
            raise error
        if found[name] == "missing":
            return WrongName(name, "is required")
        if found[name] == "extra_forbidden":
            return WrongName(name, None)
        return WrongName(name, must_be(cls.expected(name), given[name]))


def must_be(expected: str, value: object) -> str:
    """The phrase of an error about a value that is not what it must be."""
    return f"must be {expected}, not {shown(value, _LONGEST_SHOWN_CHARACTERS)}"


def _words(annotation: object) -> Iterator[str]:
    if isinstance(annotation, Expected):
        yield annotation.words
    for argument in get_args(annotation):
        yield from _words(argument)
