"""How recipes read the spec's `options`: typed, with defaults, refused in one sentence that names the option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.wording import first_fault

Width = Annotated[int, Field(ge=1, le=4096)]
"""Units or channels of a layer."""
Rate = Annotated[float, Field(gt=0, le=10)]
"""A learning rate."""


class Options(BaseModel):
    """A recipe's options; a subclass has a field with a default for each."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


OptionsT = TypeVar("OptionsT", bound=Options)


def read_options(kind: type[OptionsT], given: Mapping[str, Any]) -> OptionsT:
    """Check a spec's options.

    Args:
        kind: what the recipe has.
        given: the spec's `options`.

    Raises:
        ValueError: one of them is unknown or has a wrong value; the message names it as `options.<name>`.
    """
    for name in given:
        if name not in kind.model_fields:
            raise ValueError(f"options.{name}: unknown option; there are {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        name, phrase = first_fault(error.errors())
        raise ValueError(f"options.{name}: {phrase}") from error
