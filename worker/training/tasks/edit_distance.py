"""The edit distance between two sequences."""

from __future__ import annotations

from collections.abc import Sequence


def edits(one: Sequence[object], other: Sequence[object]) -> int:
    """Return the least number of insertions, deletions and replacements between two sequences (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for place, item in enumerate(one, start=1):
        diagonal, row[0] = row[0], place
        for at, wanted in enumerate(other, start=1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (item != wanted))
    return row[-1]
