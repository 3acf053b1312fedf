"""The names of a column's classes, where a file keeps them apart from the rows, which hold their ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import orjson

from jobs.data.sources.reader import InputFile

_KEY = b"huggingface"
"""The key under which the `datasets` library keeps the features of what it writes as Parquet."""


@runtime_checkable
class NamesClasses(Protocol):
    """A reader of a format that can keep names of classes."""

    def class_names(self, file: InputFile, column: str) -> list[str] | None:
        """The names of a column's classes by their ids; None where the file has none."""
        ...


def names_of_feature(feature: Any) -> list[str] | None:
    """The names of a feature of the `datasets` library: of a `ClassLabel`, or of a list of them."""
    found = getattr(feature, "feature", feature)
    return [str(name) for name in found.names] if type(found).__name__ == "ClassLabel" else None


def names_in_metadata(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str] | None:
    """The names in the metadata of a Parquet schema, as the `datasets` library writes them."""
    try:
        feature = orjson.loads((metadata or {})[_KEY])["info"]["features"][column]
        feature = feature[0] if isinstance(feature, list) else feature
        feature = feature.get("feature", feature)
        if feature["_type"] != "ClassLabel":
            return None
        return [str(name) for name in feature["names"]]
    except (KeyError, IndexError, TypeError, AttributeError, orjson.JSONDecodeError):
        return None  # another program's note, or none: then the column holds what it holds
