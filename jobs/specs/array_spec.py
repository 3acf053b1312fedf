"""The spec of an array: a template of a job's spec, and the values that make one child of it each."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.errors import InvalidSpec
from jobs.messages import did_you_mean, first_fault
from jobs.specs.bounds import MOST_COLUMNS, Name, Paths
from jobs.specs.fields import After, InputFormat, Priority, StartAt, Strict
from jobs.specs.inference import JobSpec, parse_spec
from jobs.specs.sweep_spec import SweepField

ARRAY = "array"
"""The `kind` of the job that is the parent of an array's children, and the field that makes a spec one."""
SWEEP = "sweep"
"""The field that makes a spec a sweep: an array of trainings with values from ranges."""
MOST_CHILDREN = 1_000_000
"""The most children of one array."""
MOST_PARALLEL = 1000
"""The largest `max_parallel`."""
AHEAD = 16
"""Children that are made before there is a place for them, so that a place never stays empty."""
INDEX = "index"
"""Name of the value that every child has: its number, from 0."""
VALUE = "value"
"""Name of the value of a child whose entry in `array.values` is no mapping."""
_PLACE = re.compile(r"(\$?)\$\{([^{}]*)\}")

Value = str | int | float | bool
Values = dict[Name, Value]


class ArrayField(Strict):
    """The values of an array's children, in one of three forms."""

    values: Annotated[list[Values | Value], Field(min_length=1)] | None = None
    """One child for each entry: a mapping of names to values, or a single value, which has the name `value`."""
    grid: (
        Annotated[dict[Name, Annotated[list[Value], Field(min_length=1)]], Field(min_length=1, max_length=MOST_COLUMNS)]
        | None
    ) = None
    """One child for each combination of the named values. The last name changes fastest."""
    file: Paths | None = Field(default=None, min_length=1)
    """One child for each row of a file; its columns are the names. The forms of `input.path` are accepted."""
    format: InputFormat = "auto"
    """The format of `file`, as in `input.format`."""
    max_parallel: Annotated[int, Field(ge=1, le=MOST_PARALLEL)] = 64
    """The most children that are planned, wait for slots or run at once."""

    @model_validator(mode="after")
    def _one_form(self) -> ArrayField:
        if [self.values, self.grid, self.file].count(None) != 2:
            raise ValueError("array: needs exactly one of values, grid and file")
        if self.num_listed is not None and self.num_listed > MOST_CHILDREN:
            raise ValueError(f"array: has {self.num_listed} children, more than {MOST_CHILDREN}")
        return self

    @property
    def num_listed(self) -> int | None:
        """Number of children; None if they are the rows of a file."""
        if self.grid is not None:
            return math.prod(len(values) for values in self.grid.values())
        return None if self.values is None else len(self.values)

    def listed(self, start: int = 0) -> Iterator[Mapping[str, Value]]:
        """Yield the values of the children from one of them on; nothing if they are the rows of a file."""
        if self.grid is not None:
            for number in range(start, self.num_listed or 0):
                yield self._combination(number)
        for entry in itertools.islice(self.values or (), start, None):
            yield entry if isinstance(entry, dict) else {VALUE: entry}

    def _combination(self, number: int) -> dict[str, Value]:
        """The combination with a number, which is written in a number system with a digit for each name."""
        digits: dict[str, Value] = {}
        for name, values in reversed((self.grid or {}).items()):
            number, digit = divmod(number, len(values))
            digits[name] = values[digit]
        return digits


class ArraySpec(BaseModel):
    """An array of jobs: the field `array`, and the fields of a job's spec, in whose texts `${NAME}` is replaced by the
    child's value of that name. A text that is only `${NAME}` becomes the value itself. `$${` stands for `${`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    array: ArrayField | None = None
    sweep: SweepField | None = None
    """Instead of `array`: the values are searched, and the best training wins."""
    name: str | None = Field(default=None, max_length=200)
    """A label for people."""
    priority: Priority = Priority.NORMAL
    after: After = Field(default_factory=list)
    """Jobs that must end before the first child begins."""
    start_at: StartAt | None = None
    """The first child begins at this time, or later."""

    @model_validator(mode="after")
    def _one_of_both(self) -> ArraySpec:
        if (self.array is None) == (self.sweep is None):
            raise ValueError("array: a spec has either array or sweep")
        return self

    @property
    def file(self) -> str | list[str] | None:
        """The file with the values of the children, if they are in one."""
        return None if self.array is None else self.array.file

    @property
    def num_listed(self) -> int | None:
        """Number of children; None if they are the rows of a file."""
        return self._values.num_listed

    @property
    def max_parallel(self) -> int:
        """The most children that are ready at once."""
        return self._values.max_parallel

    @property
    def num_ahead(self) -> int:
        """Number of children that are made before there is a place for them."""
        return 0 if self.sweep is not None and self.sweep.is_adaptive else AHEAD

    def listed(self, start: int = 0) -> Iterator[Mapping[str, Value]]:
        """Yield the values of the children from one of them on; nothing if they are the rows of a file."""
        return self._values.listed(start)

    @property
    def _values(self) -> ArrayField | SweepField:
        found = self.array or self.sweep
        assert found is not None
        return found

    @property
    def kind(self) -> Literal["array"]:
        """Kind of the parent job."""
        return "array"

    @property
    def template(self) -> dict[str, Any]:
        """The fields of a child's spec, with the places of its values."""
        return {**(self.model_extra or {}), "name": self.name, "priority": self.priority.value}

    @property
    def names(self) -> frozenset[str]:
        """Names of the values that the template uses, apart from the index."""
        return frozenset(_names(self.template)) - {INDEX}

    @property
    def model(self) -> str | None:
        """The model of all children, if it is the same for all."""
        model = self.template.get("model")
        return model if isinstance(model, str) and not _PLACE.search(model) else None

    def document_of(self, index: int, values: Mapping[str, Value]) -> dict[str, Any]:
        """Fill the template with the values of one child.

        Raises:
            InvalidSpec: The template uses a name that the child has no value for.
        """
        document: dict[str, Any] = _fill(self.template, {**values, INDEX: values.get(INDEX, index)})
        return document

    def child(self, index: int, values: Mapping[str, Value]) -> JobSpec:
        """The spec of one child.

        Raises:
            InvalidSpec: See `document_of`, or the child's spec is not valid.
        """
        return parse_spec(self.document_of(index, values))


def parse_submission(document: object) -> JobSpec | ArraySpec:
    """Validate a submitted document: a spec, or an array of them.

    Raises:
        InvalidSpec: The document is neither; the message and `param` name the first invalid field.
    """
    if not isinstance(document, dict) or not {ARRAY, SWEEP}.intersection(document):
        return parse_spec(document)
    try:
        spec = ArraySpec.model_validate(document)
    except ValidationError as error:
        field, message = first_fault(error.errors())
        if message.startswith(f"{ARRAY}: "):
            raise InvalidSpec(message, param=ARRAY) from error
        raise InvalidSpec(f"{field}: {message}", param=field) from error
    for number, values in enumerate(itertools.islice(spec.listed(), 1)):
        spec.document_of(number, values)
    if spec.sweep is not None:
        for name in spec.sweep.parameters.keys() - set(_names(spec.template)):
            raise InvalidSpec(
                f"sweep.parameters.{name}: is not used; put ${{{name}}} into the spec, or leave it out",
                param=f"sweep.parameters.{name}",
            )
    return spec


def parse_single(document: object, why_not_many: str) -> JobSpec:
    """Validate a document that must be one job, not an array.

    Args:
        why_not_many: What is said about the field that makes it an array.

    Raises:
        InvalidSpec: See `parse_spec`; or the document is an array or a sweep.
    """
    for field in (ARRAY, SWEEP):
        if isinstance(document, dict) and field in document:
            raise InvalidSpec(f"{field}: {why_not_many}", param=field)
    return parse_spec(document)


def _names(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield from (match[2] for match in _PLACE.finditer(node) if not match[1])
    elif isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _names(inner)


def _fill(node: Any, values: Mapping[str, Value]) -> Any:
    """Replace the places in all texts of a document. Names of fields stay as they are."""
    if isinstance(node, dict):
        return {name: _fill(inner, values) for name, inner in node.items()}
    if isinstance(node, list):
        return [_fill(inner, values) for inner in node]
    if not isinstance(node, str):
        return node
    whole = _PLACE.fullmatch(node)
    if whole is not None and not whole[1]:
        return _value_of(whole[2], values)
    return _PLACE.sub(lambda match: match[0][1:] if match[1] else str(_value_of(match[2], values)), node)


def _value_of(name: str, values: Mapping[str, Value]) -> Value:
    if name not in values:
        raise InvalidSpec(
            f"array: the spec uses ${{{name}}}, but the values have {', '.join(values)}{did_you_mean(name, values)}",
            param=ARRAY,
        )
    return values[name]
