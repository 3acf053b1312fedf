"""The base class of parameters and arguments: pydantic models whose fields describe their valid values in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.messages import shown

_LONGEST_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Expected:
    """Annotation of a type that describes its valid values, in words that follow "must be"."""

    words: str


class WrongName(NamedTuple):
    """A name in a user's mapping, and what is wrong with it."""

    name: str
    message: str | None
    """A phrase that follows the name; None if the model has no field of this name."""


class Settable(BaseModel):
    """Base class for values that a user sets by name. A field has a docstring and an annotation `Expected`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def given(self) -> dict[str, Any]:
        """Return the values that the user set, by name, without defaults."""
        values = {**self.__dict__, **(self.model_extra or {})}
        return {name: value for name, value in values.items() if name in self.model_fields_set}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the fields; those of the class itself come before inherited ones."""
        return tuple(sorted(cls.model_fields, key=lambda name: name not in cls.__annotations__))

    @classmethod
    def expected(cls, name: str) -> str:
        """Return a description of a field's valid values."""
        return next(_words(cls.model_fields[name].rebuild_annotation()))

    @classmethod
    def wrong_name(cls, error: ValidationError, given: Mapping[str, Any]) -> WrongName:
        """Find the name that a failed validation is about.

        Args:
            error: Pydantic's error.
            given: The mapping that was validated.
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
    """Return the phrase of an error message about an invalid value."""
    return f"must be {expected}, not {shown(value, _LONGEST_SHOWN_CHARACTERS)}"


def _words(annotation: object) -> Iterator[str]:
    if isinstance(annotation, Expected):
        yield annotation.words
    for argument in get_args(annotation):
        yield from _words(argument)
