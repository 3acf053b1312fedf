"""Parse JSON and YAML documents of plain values: only what JSON and a database can hold, and no YAML aliases."""

from __future__ import annotations

import math
import re
from typing import Any

import orjson
import yaml

from jobs.errors import InvalidSpec
from jobs.messages import shown
from jobs.specs.bounds import DEEPEST_LEVELS, MOST_DOCUMENT_VALUES

_LONGEST_NAME = 100  # characters of a field's name that are shown in an error
_LONGEST_NUMBER = 100  # characters of a number in YAML; parsing takes time quadratic in them

# The parser of libyaml if PyYAML was built with it: twenty times as fast as PyYAML's own.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_document(body: bytes, *, name: str, is_yaml: bool) -> dict[str, Any]:
    """Parse a mapping of plain values from JSON or YAML.

    Args:
        body: Text of the document in UTF-8.
        name: Name of the document in errors.
        is_yaml: Whether to parse YAML instead of JSON.

    Raises:
        InvalidSpec: The document is not such a mapping; the message names the line or the field.
    """
    document = _parse_yaml(body, name) if is_yaml else _parse_json(body, name)
    if not isinstance(document, dict):
        raise InvalidSpec(f"{name} must be a mapping of fields to values")
    _check_plain(document, name)
    return document


def _parse_json(body: bytes, name: str) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidSpec(f"{name} is not valid JSON: {error}") from error


def _parse_yaml(body: bytes, name: str) -> object:
    try:
        text = body.decode("utf-8")
        _check_events(text, name)
        return yaml.load(text, _PlainLoader)
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"{name} is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        last = max(1, len(body.splitlines()))  # an error at the end of the text is reported one line after it
        line = "" if error.problem_mark is None else f" in line {min(error.problem_mark.line + 1, last)}"
        raise InvalidSpec(f"{name} is not valid YAML: {error.problem}{line}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidSpec(f"{name} is not valid YAML") from error


def _check_events(text: str, name: str) -> None:
    """Reject text that is too deep, too large or has aliases, before it is constructed: a few lines of aliases can
    stand for billions of values."""
    depth = num_values = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=mark)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST_LEVELS + 1:
                raise InvalidSpec(f"{name} is nested deeper than {DEEPEST_LEVELS} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        num_values += isinstance(event, yaml.NodeEvent)
        if num_values > 2 * MOST_DOCUMENT_VALUES:  # field names are events too
            raise InvalidSpec(f"{name} has more than {MOST_DOCUMENT_VALUES} values")


class _PlainLoader(_Loader):  # type: ignore[misc]
    """Loader of plain YAML: rejects duplicate fields, and reads numbers as YAML 1.2, so that `12:30` is a string."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Construct a mapping as inherited, but reject duplicate fields."""
        seen = set()
        for key, _value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the field {shown(name)} appears twice", problem_mark=key.start_mark
                )
            if name is not None:
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> Any:
        """Construct an int or a float; a value with colons is a string."""
        text = str(node.value)
        if ":" in text:
            return text
        if len(text) > _LONGEST_NUMBER:
            problem = f"a number has more than {_LONGEST_NUMBER} characters"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        is_whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _PlainLoader.construct_number)
# PyYAML implements YAML 1.1, where a learning rate of `5e-5` is a string; in YAML 1.2 it is a number.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _check_plain(document: dict[str, Any], name: str) -> None:
    """Reject values that are not plain, level by level.

    Each value is paired with its place: None for the document, else the place of its parent and its key or index.
    """
    level: list[tuple[Any, Any]] = [(document, None)]
    num_values = 0
    for _ in range(DEEPEST_LEVELS + 1):
        inner: list[tuple[Any, Any]] = []
        for value, place in level:
            if isinstance(value, dict | list):
                num_values += len(value)
                if num_values > MOST_DOCUMENT_VALUES:
                    raise InvalidSpec(f"{name} has more than {MOST_DOCUMENT_VALUES} values")
            if isinstance(value, dict):
                for key, each in value.items():
                    if not isinstance(key, str):
                        raise InvalidSpec(
                            f"{_path(place) or name}: the name of a field must be a text, not {shown(key)}"
                        )
                    _check_text(key, name, place)
                    inner.append((each, (place, key)))
            elif isinstance(value, list):
                inner.extend((each, (place, number)) for number, each in enumerate(value))
            else:
                _check_scalar(value, name, place)
        if not inner:
            return
        level = inner
    path = _path(level[0][1])
    raise InvalidSpec(f"{path}: is nested deeper than {DEEPEST_LEVELS} levels", param=path)


def _path(place: Any) -> str:
    parts: list[str] = []
    while place is not None:
        place, part = place
        parts.append(str(part)[:_LONGEST_NAME])
    return ".".join(reversed(parts))


def _check_scalar(value: object, document: str, place: Any) -> None:
    if isinstance(value, str):
        _check_text(value, document, place)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _wrong(place, "must be a finite number")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise _wrong(place, "the number is too large")
    elif value is not None:
        raise _wrong(place, f"a {type(value).__name__} is not a value of a spec; put it in quotes")


def _wrong(place: Any, message: str) -> InvalidSpec:
    path = _path(place)
    return InvalidSpec(f"{path}: {message}", param=path)


def _check_text(text: str, document: str, place: Any) -> None:
    if "\0" in text:
        path = _path(place)
        raise InvalidSpec(f"{path or document}: contains a NUL character", param=path or None)
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            path = _path(place)
            raise InvalidSpec(f"{path or document}: is not valid Unicode text", param=path or None) from error
