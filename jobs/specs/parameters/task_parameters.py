"""The base classes of all tasks' parameters, and the names that no job may set, at any depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, ValidationError, model_validator

from jobs.errors import InvalidSpec
from jobs.messages import did_you_mean
from jobs.specs.training_options.settable import Settable
from jobs.specs.training_options.value_types import MOST_TOKENS, Labels

FORBIDDEN_NAMES = frozenset(
    {
        "assistant_model", "assistant_tokenizer", "custom_generate", "generation_config", "logits_processor", "model",
        "monitor_progress", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer", "tokenizer",
        "trust_remote_code",
    }
)  # fmt: skip
"""Arguments of `generate` and of loaders that would load other code, objects or models."""


class TaskParameters(Settable):
    """Base class of a task's parameters. A parameter that is null counts as absent, unless `NULLS` names it."""

    TASK: ClassVar[str]
    """The task's name."""
    NULLS: ClassVar[frozenset[str]] = frozenset()
    """Parameters for which null has a meaning of its own."""
    OWN: ClassVar[frozenset[str]] = frozenset()
    """Parameters that only Stoker reads; the task's pipeline does not get them."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        stay = cls.NULLS | (given.keys() - cls.model_fields.keys())
        return {name: value for name, value in given.items() if value is not None or name in stay}

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Check a user's parameters and return them as a model.

        If a task accepts names beyond the fields, only its pipeline and the loaded model know these names, so the
        runner checks them.

        Args:
            given: The user's parameters by name.

        Raises:
            InvalidSpec: A parameter is unknown, must not be set or has a wrong value; the message names it, and
                `param` is `parameters.<name>`.
        """
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            name, message = cls.wrong_name(error, given)
            if message is None:
                raise unknown_parameter(cls.TASK, name, cls.names()) from error
            raise refused(name, message) from error

    @classmethod
    def is_open(cls) -> bool:
        """Return whether the task accepts names beyond the fields, namely those of its pipeline and model."""
        return cls.model_config.get("extra") == "allow"

    def refuse_pair(self, one: str, other: str) -> None:
        """Reject two parameters that exclude each other; `other` may be `outer.inner`.

        Raises:
            InvalidSpec: Both parameters are set.
        """
        outer, _, inner = other.partition(".")
        given = self.given()
        value = given.get(outer)
        if inner:
            value = value.get(inner) if isinstance(value, Mapping) else None
        if given.get(one) is not None and value is not None:
            raise refused(other, f"cannot be used with parameters.{one}; set only one of them")

    def refuse_inner(self, name: str, ours: frozenset[str]) -> None:
        """Reject names in a parameter's mapping that the task's pipeline sets itself.

        Raises:
            InvalidSpec: The mapping contains such a name.
        """
        taken = sorted(ours & (self.given().get(name) or {}).keys())
        if taken:
            raise refused(f"{name}.{taken[0]}", f"cannot be set: task '{self.TASK}' sets it itself")


class OpenParameters(TaskParameters):
    """Base class for a task that also accepts all parameters of its pipeline and of its model."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _allowed(cls, given: Any) -> Any:
        for name, value in given.items() if isinstance(given, dict) else ():
            if name in FORBIDDEN_NAMES:
                raise unknown_parameter(cls.TASK, name, cls.names())
            check_inner_names(name, value)
        return given


class LabelParameters(TaskParameters):
    """Base class for a task with labels that the user provides."""

    candidate_labels: Labels | None = None
    """Labels to choose from, for rows without labels of their own."""


def refused(name: str, reason: str) -> InvalidSpec:
    """Make the error for a parameter; the reason follows its name."""
    return InvalidSpec(f"parameters.{name}: {reason}", param=f"parameters.{name}")


def unknown_parameter(task: str, name: str, known: tuple[str, ...]) -> InvalidSpec:
    """Make the error for a parameter that a task does not have."""
    has = f"; it has {', '.join(known)}" if known else "; it has none"
    return refused(name, f"task '{task}' has no parameter '{name}'{did_you_mean(name, known)}{has}")


def check_inner_names(name: str, value: object) -> None:
    """Reject a parameter whose value contains a forbidden name or a `max_length` above `MOST_TOKENS`, at any depth.

    Raises:
        InvalidSpec: The value contains one; the message names the parameter and the inner name.
    """
    forbidden = set()
    for inner, content in _inner_items(value):
        if inner == "max_length" and isinstance(content, int) and content > MOST_TOKENS:
            raise refused(f"{name}.max_length", f"must be at most {MOST_TOKENS} tokens")
        if inner in FORBIDDEN_NAMES:
            forbidden.add(inner)
    if forbidden:
        raise refused(f"{name}.{min(forbidden)}", "cannot be set by a job")


def _inner_items(value: object) -> Iterator[tuple[Any, Any]]:
    """Iterate over the names and values of all mappings in a value, at any depth."""
    if isinstance(value, Mapping):
        yield from value.items()
        for inner in value.values():
            yield from _inner_items(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _inner_items(inner)
