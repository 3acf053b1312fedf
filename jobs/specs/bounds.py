"""Limits of length, number and depth for what a client sends, checked before any other work on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

LONGEST_PATH_BYTES = 4096
"""Linux's limit for a path, including the terminating zero byte."""
LONGEST_NAME_BYTES = 255
"""File systems' limit for one name in a path."""
MOST_PATH_COMPONENTS = 128
"""The most names in one path; each of them costs a look-up in the file system."""
MOST_INPUT_PATHS = 10_000
"""The most entries in a list of paths; a glob may match more files."""
MOST_INPUT_COMPONENTS = 100_000
"""The most names in all paths of one list in total."""
MOST_INPUT_FILES = 50_000
"""The most files of one job, including those that globs match."""
MOST_GLOB_NAMES = 200_000
"""The most names of files and folders that are read to find the matches of a glob."""
MOST_GLOB_STARS = 16
"""The most wildcards in one glob."""
MOST_DEEP_STARS = 2
"""The most `**` in one glob."""
LONGEST_NAME_CHARACTERS = 500
"""The longest name of a column, a split, a configuration or a metric."""
MOST_COLUMNS = 100
"""The most entries of `columns`."""
MOST_OPTIONS = 1000
"""The most entries of `parameters`, `options`, `arguments` and an architecture's `config`, at their first level."""
MOST_VALUES = 100_000
"""The most values in one of these mappings, in total over all levels."""
LONGEST_VALUES_CHARACTERS = 1_000_000
"""The most characters in one of these mappings, in total over all texts and names."""
DEEPEST_LEVELS = 64
"""The most levels of nesting of a document."""
MOST_FIELDS = 200
"""The most entries of a mapping whose field names are known, such as a spec."""
MOST_DOCUMENT_VALUES = 200_000
"""The most values in one document, in total over all levels."""
MOST_TARGET_MODULES = 1000
"""The most entries of `lora.target_modules`."""
LONGEST_ENTRY_CHARACTERS = 8192
"""The longest text in an event of a job's history, and the longest line of its log; longer ones are cut."""

Name = Annotated[str, StringConstraints(max_length=LONGEST_NAME_CHARACTERS)]
"""The name of a column, split, configuration or metric."""
PathText = Annotated[str, StringConstraints(max_length=LONGEST_PATH_BYTES)]
"""A path, a URL, or the name of a model or data set."""

_DEEP_STAR = re.compile(r"\*\*+")
_STAR = re.compile(r"\*+|\?|\[")


def path_fault(path: str) -> str | None:
    """Find why a text cannot be a path, without access to the file system.

    Returns:
        A phrase that follows the field's name in a message; None if the text is acceptable.
    """
    if "\0" in path:
        return "contains a zero byte"
    try:
        num_bytes = len(path.encode())
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    if num_bytes >= LONGEST_PATH_BYTES:
        return f"is longer than {LONGEST_PATH_BYTES - 1} bytes"
    names = path.split("/")
    if len(names) > MOST_PATH_COMPONENTS:
        return f"has more than {MOST_PATH_COMPONENTS} parts separated by /"
    if num_bytes > LONGEST_NAME_BYTES and any(len(name.encode()) > LONGEST_NAME_BYTES for name in names):
        return f"has a name longer than {LONGEST_NAME_BYTES} bytes"
    return None


def glob_fault(pattern: str) -> str | None:
    """Find why a glob would take too long to expand; None if it is acceptable."""
    if len(_DEEP_STAR.findall(pattern)) > MOST_DEEP_STARS:
        return f"has more than {MOST_DEEP_STARS} `**`"
    if len(_STAR.findall(pattern)) > MOST_GLOB_STARS:
        return f"has more than {MOST_GLOB_STARS} wildcards"
    return None


def _check_paths(value: str | list[str]) -> str | list[str]:
    """Reject a path or a list of paths that exceeds the limits."""
    paths = [value] if isinstance(value, str) else value
    num_components = 0
    for number, path in enumerate(paths):
        fault = path_fault(path) or glob_fault(path)
        if fault is not None:
            raise ValueError(fault if isinstance(value, str) else f"entry {number} {fault}")
        num_components += path.count("/") + 1
    if num_components > MOST_INPUT_COMPONENTS:
        raise ValueError(f"the paths have more than {MOST_INPUT_COMPONENTS} parts in total; use a glob instead")
    return value


Paths = Annotated[
    PathText | Annotated[list[PathText], Field(max_length=MOST_INPUT_PATHS)],
    AfterValidator(_check_paths),
]
"""One or several paths."""


def _check_values(value: dict[str, Any]) -> dict[str, Any]:
    """Reject a mapping of free values that is too large or too deep."""
    if len(value) > MOST_OPTIONS:
        raise ValueError(f"must have at most {MOST_OPTIONS} entries")
    if any(len(name) > LONGEST_NAME_CHARACTERS for name in value):
        raise ValueError(f"has a name longer than {LONGEST_NAME_CHARACTERS} characters")
    num_values = num_characters = 0
    level: list[Any] = [value]
    for _ in range(DEEPEST_LEVELS):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, Mapping):
                num_characters += sum(len(name) for name in each if isinstance(name, str))
                inner.extend(each.values())
            elif isinstance(each, list | tuple):
                inner.extend(each)
            elif isinstance(each, str):
                num_characters += len(each)
        num_values += len(inner)
        if num_values > MOST_VALUES:
            raise ValueError(f"contains more than {MOST_VALUES} values")
        if num_characters > LONGEST_VALUES_CHARACTERS:
            raise ValueError(f"contains more than {LONGEST_VALUES_CHARACTERS} characters")
        if not inner:
            return value
        level = inner
    raise ValueError(f"is nested deeper than {DEEPEST_LEVELS} levels")


Values = Annotated[
    dict[str, Any], AfterValidator(_check_values), Field(json_schema_extra={"maxProperties": MOST_OPTIONS})
]
"""A mapping of names to free values, limited in number, length and depth."""
Columns = Annotated[dict[Name, Name | None], Field(max_length=MOST_COLUMNS)]
"""Input name of the task -> the user's column; None for an optional input that is not read."""
