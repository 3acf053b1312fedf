"""Reading a request's JSON or YAML document: bounded, plain data only, nothing that a database or JSON cannot hold."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import orjson
import yaml
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from jobs.errors import InvalidSpec, TooLarge, UserError

Asked = TypeVar("Asked", bound=BaseModel)

MAX_DOCUMENT_BYTES = 10 * 2**20
MAX_YAML_BYTES = 256 * 2**10
"""Less than for JSON, since reading YAML takes a few seconds for each megabyte."""
_YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})
_DEEPEST = 64  # levels of nesting
_LONGEST_NAME = 100  # characters of a field's name that an error repeats


async def read_document(request: Request) -> dict[str, Any]:
    """The request's body as a mapping; YAML where the content type says so, else JSON. A dependency.

    Raises:
        TooLarge: it is longer than the limit of its kind; no more than that was read.
        InvalidSpec: it is no mapping of plain values.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_yaml = media_type in _YAML_TYPES
    limit = MAX_YAML_BYTES if is_yaml else MAX_DOCUMENT_BYTES
    too_large = TooLarge(f"the body is larger than {limit // 2**10} KiB; upload a large input as a file")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > limit:
            raise too_large
    return await run_in_threadpool(parse_document, bytes(body), is_yaml=is_yaml)  # others are served meanwhile


def parse_document(body: bytes, *, is_yaml: bool) -> dict[str, Any]:
    """A mapping of plain values from JSON or YAML.

    Raises:
        InvalidSpec: it is not one; the message names the line or the field.
    """
    document = _parse_yaml(body) if is_yaml else _parse_json(body)
    if not isinstance(document, dict):
        raise InvalidSpec("the body must be a mapping of fields to values")
    _check_plain(document, "", 0)
    return document


def parse_request(form: type[Asked], document: dict[str, Any], *, noun: str) -> Asked:
    """A document as what it asks for.

    Args:
        form: of the request.
        document: as it was read.
        noun: what is asked for, with its article, for the error.

    Raises:
        UserError: it does not have that form; the message names the first field at fault.
    """
    try:
        return form.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        message = f"is not a parameter of {noun}" if first["type"] == "extra_forbidden" else first["msg"]
        raise UserError(f"{param}: {message}", param=param) from error


def _parse_json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidSpec(f"the body is not valid JSON: {error}") from error


def _parse_yaml(body: bytes) -> object:
    try:
        return yaml.load(body.decode("utf-8"), _PlainLoader)
    except UnicodeDecodeError as error:
        raise InvalidSpec("the body is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise InvalidSpec(f"the body is not valid YAML: {error.problem}{line}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidSpec("the body is not valid YAML") from error
    except RecursionError as error:
        raise InvalidSpec(f"the body is nested deeper than {_DEEPEST} levels") from error


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


def _check_plain(value: object, path: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise InvalidSpec(f"{path}: nested deeper than {_DEEPEST} levels", param=path)
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InvalidSpec(f"{path or 'the body'}: the name of a field must be a text, not {key!r}")
            _check_text(key, path)
            name = key[:_LONGEST_NAME]
            _check_plain(inner, f"{path}.{name}" if path else name, depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{path}.{index}", depth + 1)
    elif isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidSpec(f"{path}: must be a finite number", param=path)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InvalidSpec(f"{path}: the number is too large", param=path)
    elif value is not None:
        raise InvalidSpec(f"{path}: a {type(value).__name__} is not a value of a spec; put it in quotes", param=path)


def _check_text(text: str, path: str) -> None:
    if "\0" in text:
        raise InvalidSpec(f"{path or 'the body'}: holds a NUL character", param=path or None)
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidSpec(f"{path or 'the body'}: is not valid Unicode text", param=path or None) from error


def yaml_or_json(schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's description of such a body."""
    types = ("application/json", "application/yaml")
    return {"requestBody": {"required": True, "content": {name: {"schema": schema} for name in types}}}
