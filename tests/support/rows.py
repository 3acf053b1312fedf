"""Input files with generated rows, and the spec of a job over them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.tiny import SENTENCES

LABELLED = {"animals": ("fox", "dog", "cat", "horse"), "cities": ("London", "Paris", "Rome", "Oslo")}
_WORDS = "the quick brown fox jumps over a lazy dog while seven wizards brew potent potions behind closed doors".split()


def json_lines(rows: Iterable[Mapping[str, Any] | str]) -> str:
    """Rows as JSON lines; a string is a line already."""
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def write_rows(path: Path, rows: int | Iterable[Mapping[str, Any] | str]) -> Path:
    """Write rows as JSON lines; a number writes that many plain rows. Returns the path."""
    if isinstance(rows, int):
        rows = with_ids(f"row {row}" for row in range(rows))
    path.write_text(json_lines(rows), encoding="utf-8")
    return path


def with_ids(texts: Iterable[str]) -> list[dict[str, Any]]:
    """A row for each text, with the ids r0, r1, ..."""
    return [{"id": f"r{row}", "text": text} for row, text in enumerate(texts)]


def varied_rows(num_rows: int) -> list[dict[str, Any]]:
    """Rows of varied length with distinct texts."""
    chosen = random.Random(7)
    return with_ids(f"{row} {' '.join(chosen.choices(_WORDS, k=chosen.randint(1, 40)))}" for row in range(num_rows))


def labelled_rows(num_rows: int) -> list[dict[str, Any]]:
    """Distinct texts with a label that follows from a word in them."""
    chosen = random.Random(3)
    rows = []
    for number in range(num_rows):
        label = chosen.choice(sorted(LABELLED))
        rows.append({"text": f"{number} {chosen.choice(SENTENCES)} {chosen.choice(LABELLED[label])}", "label": label})
    return rows


def embedding_spec(model: Path, rows: Path, *, chunk_rows: int = 64, **fields: Any) -> dict[str, Any]:
    """The spec of an embeddings job over a file of such rows."""
    return {
        "task": "embeddings",
        "model": str(model),
        "input": {"path": str(rows), "key": "id"},
        "batching": {"chunk_rows": chunk_rows},
        **fields,
    }
