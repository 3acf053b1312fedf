"""Read spec documents from files, standard input or command-line options."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from jobs.errors import InvalidSpec, NotFound
from jobs.messages import reason
from scheduler.client.connection import Json
from scheduler.client.plain_data import parse_document

_LABELS = "labels="


def read_spec(path: str) -> Json:
    """Read the document in a YAML or JSON file, or on standard input for `-`.

    Raises:
        NotFound: The file does not exist.
        InvalidSpec: The file does not hold one mapping of plain values.
    """
    name = "standard input" if path == "-" else f"'{path}'"
    try:
        body = sys.stdin.buffer.read() if path == "-" else Path(path).expanduser().read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"there is no spec file '{path}'", param="spec") from error
    except (OSError, ValueError, RuntimeError) as error:  # also a zero byte in the name, or an unknown ~user
        raise InvalidSpec(f"cannot read the spec file '{path}': {reason(error)}", param="spec") from error
    body = body.removeprefix(codecs.BOM_UTF8)
    if path.lower().endswith(".json"):
        return parse_document(body, name=name, is_yaml=False)
    # JSON has its own parser, since YAML's rejects tabs before a field and is a hundred times slower.
    is_json = body.lstrip().startswith(b"{") and _is_json(body)
    return parse_document(body, name=name, is_yaml=not is_json)


def _is_json(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, str]:
    """Parse `name=value` options into a mapping.

    Raises:
        InvalidSpec: An option has no `=`, or a name occurs twice.
    """
    mapping: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidSpec(f"{option}: must be NAME=VALUE, not '{pair}'")
        if name in mapping:
            raise InvalidSpec(f"{option}: '{name}' is set twice")
        mapping[name] = value
    return mapping


def parse_needs(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `--needs name=value` options; `labels` may be repeated, and name several labels with commas between them.

    Raises:
        InvalidSpec: An option has no `=`, or another name occurs twice.
    """
    labels = [pair.removeprefix(_LABELS) for pair in pairs if pair.startswith(_LABELS)]
    needs: dict[str, Any] = dict(parse_pairs([pair for pair in pairs if not pair.startswith(_LABELS)], "--needs"))
    if labels:
        needs["labels"] = [label.strip() for text in labels for label in text.split(",")]
    return needs


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `--param name=value` options. A value that is valid JSON is parsed, any other is a string."""
    parameters: dict[str, Any] = {}
    for name, value in parse_pairs(pairs, "--param").items():
        try:
            parameters[name] = orjson.loads(value)
        except orjson.JSONDecodeError:
            parameters[name] = value
    return parameters
