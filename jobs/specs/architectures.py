"""The architectures that transformers can train for each task, by `model_type`; readable without loading torch.

`architectures.json` holds them; `ops/list_architectures.py` writes it from transformers 5.23. A test fails when
transformers has more. A type that is not in `known` is newer than the file, and transformers accepts or rejects it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import orjson


@dataclass(frozen=True, slots=True)
class Architectures:
    """Model types of transformers."""

    trainable: dict[str, frozenset[str]]
    """Training task -> the types that have a head for it."""
    known: frozenset[str]
    """All model types in transformers."""
    renamed: frozenset[str]
    """Types of language models whose modules may have other names than the weights in their files: transformers
    converts the names on loading, or no model of the type could be built to confirm that it does not."""


@cache
def read_architectures() -> Architectures:
    """Read the file, at the first call only."""
    listed = orjson.loads(Path(__file__).with_suffix(".json").read_bytes())
    return Architectures(
        trainable={task: frozenset(kinds) for task, kinds in listed["trainable"].items()},
        known=frozenset(listed["known"]),
        renamed=frozenset(listed["renamed"]),
    )
