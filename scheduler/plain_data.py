"""JSON and YAML documents of plain data: nothing that a database or JSON cannot hold, and no tricks of YAML."""

from __future__ import annotations

import math
import re
from typing import Any

import orjson
import yaml

from jobs.errors import InvalidSpec

_DEEPEST = 64  # levels of nesting
_LONGEST_NAME = 100  # characters of a field's name that an error repeats


def parse_document(body: bytes, *, name: str, is_yaml: bool) -> dict[str, Any]:
    """A mapping of plain values from JSON or YAML.

    Args:
        body: in UTF-8.
        name: what an error calls it.
        is_yaml: as which of the two it is read.

    Raises:
        InvalidSpec: it is not one; the message names the line or the field.
    """
    document = _parse_yaml(body, name) if is_yaml else _parse_json(body, name)
    if not isinstance(document, dict):
        raise InvalidSpec(f"{name} must be a mapping of fields to values")
    _check_plain(document, name, "", 0)
    return document


def _parse_json(body: bytes, name: str) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidSpec(f"{name} is not valid JSON: {error}") from error


def _parse_yaml(body: bytes, name: str) -> object:
    try:
        return yaml.load(body.decode("utf-8"), _PlainLoader)
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"{name} is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise InvalidSpec(f"{name} is not valid YAML: {error.problem}{line}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidSpec(f"{name} is not valid YAML") from error
    except RecursionError as error:
        raise InvalidSpec(f"{name} is nested deeper than {_DEEPEST} levels") from error


class _PlainLoader(yaml.SafeLoader):
    """YAML's plain data: no aliases, of which a few lines can stand for billions of values, and no field twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As inherited, but refuses an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """As inherited, but refuses a field that stands twice."""
        seen = set()
        for key, _value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"field '{name}' stands twice", problem_mark=key.start_mark)
            if name is not None:
                seen.add(name)
        return super().construct_mapping(node, deep)


# The library reads YAML 1.1, where the `5e-5` of a learning rate is a text; in YAML 1.2 it is the number it looks like.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _check_plain(value: object, document: str, path: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise InvalidSpec(f"{path}: nested deeper than {_DEEPEST} levels", param=path)
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InvalidSpec(f"{path or document}: the name of a field must be a text, not {key!r}")
            _check_text(key, document, path)
            name = key[:_LONGEST_NAME]
            _check_plain(inner, document, f"{path}.{name}" if path else name, depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_plain(inner, document, f"{path}.{index}", depth + 1)
    elif isinstance(value, str):
        _check_text(value, document, path)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidSpec(f"{path}: must be a finite number", param=path)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InvalidSpec(f"{path}: the number is too large", param=path)
    elif value is not None:
        raise InvalidSpec(f"{path}: a {type(value).__name__} is not a value of a spec; put it in quotes", param=path)


def _check_text(text: str, document: str, path: str) -> None:
    if "\0" in text:
        raise InvalidSpec(f"{path or document}: holds a NUL character", param=path or None)
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidSpec(f"{path or document}: is not valid Unicode text", param=path or None) from error
