"""Class names of a column whose rows hold class ids, from a file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import orjson

from jobs.data.sources.reader import InputFile

_KEY = b"huggingface"
"""Metadata key under which the `datasets` library stores the features of its Parquet files."""


@runtime_checkable
class NamesClasses(Protocol):
    """The protocol of a reader whose format can store class names."""

    def class_names(self, file: InputFile, column: str) -> list[str] | None:
        """The class names of a column, indexed by class id; None if the file has none."""
        ...


def names_of_feature(feature: Any) -> list[str] | None:
    """The class names of a `datasets` feature that is a `ClassLabel` or a list of them; otherwise None."""
    found = getattr(feature, "feature", feature)
    return [str(name) for name in found.names] if type(found).__name__ == "ClassLabel" else None


def names_in_metadata(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str] | None:
    """The class names that the `datasets` library wrote to a Parquet schema's metadata; None if there are none."""
    try:
        feature = orjson.loads((metadata or {})[_KEY])["info"]["features"][column]
        feature = feature[0] if isinstance(feature, list) else feature
        feature = feature.get("feature", feature)
        if feature["_type"] != "ClassLabel":
            return None
        return [str(name) for name in feature["names"]]
    except (KeyError, IndexError, TypeError, AttributeError, orjson.JSONDecodeError):
        return None  # no metadata, or another program's: the column has no class names
