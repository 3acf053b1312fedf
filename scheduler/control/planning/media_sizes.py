"""Estimates how large the images, sounds and videos of an input's rows are, from a few rows of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.config.access_rules import AccessRules
from jobs.data.rows import Row
from jobs.data.sources import ChunkRange, Source
from jobs.data.sources.media import MEDIA_INPUTS, stored_bytes

_SAMPLED_RANGES = 16
_SAMPLED_ROWS = 8
"""Rows that are read of each sampled range; the sizes of all files would take hours on a slow file system."""


def mean_media_bytes(source: Source, ranges: Sequence[ChunkRange], rules: AccessRules) -> float:
    """Mean size of the media of a row, as they are stored; 0 if rows have none or their sizes are unknown.

    Args:
        source: The input.
        ranges: The ranges of its rows; some rows are read from ranges that are spread evenly over them.
        rules: The access rules of the files that rows may name.

    Raises:
        InvalidInput: A file was removed or changed after it was indexed.
        ServiceUnavailable: A remote file cannot be reached now.
    """
    sizes = [
        sum(stored_bytes(value, rules) for name, value in row.values.items() if name in MEDIA_INPUTS)
        for row in _sample(source, ranges)
    ]
    return sum(sizes) / len(sizes) if sizes else 0.0


def _sample(source: Source, ranges: Sequence[ChunkRange]) -> Iterator[Row]:
    num_sampled = min(_SAMPLED_RANGES, len(ranges))
    for number in range(num_sampled):
        found = ranges[number * len(ranges) // num_sampled]
        stop_row = min(found.stop_row, found.start_row + _SAMPLED_ROWS)
        yield from source.read(found.start_row, stop_row, found.locator)
