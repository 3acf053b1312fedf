"""How many rows a chunk has: enough to fill batches, and few enough that a lost slot loses seconds of work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jobs.data.sources import ChunkRange
from jobs.data.sources.media import MEDIA_INPUTS
from jobs.specs.tasks import TASKS

SMALLEST_CHUNK_ROWS = 32
"""Fewest rows of a chunk, since fewer do not fill a batch; rows with large media are the exception. Inputs of unknown
length are first cut into such chunks."""
LARGEST_CHUNK_ROWS_CPU = 128
LARGEST_CHUNK_ROWS_GPU = 2048
"""Most rows of a chunk: a few seconds of work at most, so that a lost slot loses little and a yield is quick."""
LARGEST_GENERATED_ROWS_CPU = 64
LARGEST_GENERATED_ROWS_GPU = 512
"""Most rows of a chunk if each row takes hundreds of forward passes: twice as many as are computed at once, so that
waiting rows replace those that finish."""
LARGEST_MEDIA_ROWS_CPU = 64
LARGEST_MEDIA_ROWS_GPU = 256
"""Most rows of a chunk of images, sounds or videos, since a runner holds the decoded rows of three chunks."""
LARGEST_CHUNK_BYTES = 32 * 2**20
"""Most input bytes of a chunk, if rows have byte offsets: a runner holds several chunks, and rows may be megabytes."""
LARGEST_MEDIA_BYTES_CPU = 64 * 2**20
LARGEST_MEDIA_BYTES_GPU = 256 * 2**20
"""Most bytes of images, sounds and videos of a chunk, as they are stored: a few seconds of decoding."""
CHUNKS_PER_SLOT = 4
"""Fewest chunks for each slot, if the input is long enough, so that slots of unequal speed finish at the same time."""
MOST_CHUNKS = 100_000
"""Most chunks of a plan, which is held in memory at about 600 bytes per chunk; longer inputs get larger chunks."""

_FILE_FACTS = frozenset({"file", "format", "size", "stamp", "upload", "name"})


def may_have_media(task: str, *, has_images: bool = False) -> bool:
    """Whether rows of a task may have images, sounds or videos; see `largest_chunk_rows`."""
    inputs = (*TASKS[task].inputs, *TASKS[task].optional) if task in TASKS else ()
    return has_images or not MEDIA_INPUTS.isdisjoint(inputs)


def largest_chunk_rows(task: str, *, has_gpu: bool, has_images: bool = False) -> int:
    """The most rows of a chunk that takes a few seconds, or as near to that as the task allows.

    Args:
        task: The job's task.
        has_gpu: Whether a slot has a GPU.
        has_images: Whether rows may have images instead of the task's usual inputs.
    """
    if task == "text-generation":
        return LARGEST_GENERATED_ROWS_GPU if has_gpu else LARGEST_GENERATED_ROWS_CPU
    if may_have_media(task, has_images=has_images):
        return LARGEST_MEDIA_ROWS_GPU if has_gpu else LARGEST_MEDIA_ROWS_CPU
    return LARGEST_CHUNK_ROWS_GPU if has_gpu else LARGEST_CHUNK_ROWS_CPU


def largest_media_bytes(*, has_gpu: bool) -> int:
    """The most bytes of media of a chunk; `has_gpu` is whether a slot has a GPU."""
    return LARGEST_MEDIA_BYTES_GPU if has_gpu else LARGEST_MEDIA_BYTES_CPU


def chunk_rows_for(num_rows: int, *, num_slots: int, largest: int) -> int:
    """Number of rows of a chunk that keeps every slot busy to the end and still fills batches.

    Args:
        num_rows: Number of rows of the whole input.
        num_slots: Number of slots that could work on the job.
        largest: The most rows of a chunk, see `largest_chunk_rows`.
    """
    wanted = num_rows / (CHUNKS_PER_SLOT * max(1, num_slots))
    grain = min(SMALLEST_CHUNK_ROWS, largest)
    whole_grains = round(wanted / grain) * grain
    return max(grain, min(largest, whole_grains), -(-num_rows // MOST_CHUNKS))


def merge_ranges(ranges: Iterable[ChunkRange], *, num_slots: int, largest: int) -> list[ChunkRange]:
    """Merge small consecutive ranges of one file into chunks of a good size.

    Args:
        ranges: Ranges of few rows each, starting at row 0; see `collect_ranges`.
        num_slots: Number of slots, see `chunk_rows_for`.
        largest: The most rows of a chunk, see `largest_chunk_rows`.
    """
    collected = collect_ranges(ranges, min(SMALLEST_CHUNK_ROWS, largest))
    num_rows = collected[-1].stop_row if collected else 0
    return _coarsened(collected, chunk_rows_for(num_rows, num_slots=num_slots, largest=largest))


def collect_ranges(ranges: Iterable[ChunkRange], grain: int) -> list[ChunkRange]:
    """Collect ranges in bounded memory.

    Holds at most `MOST_CHUNKS` ranges at a time: when there are more, all ranges so far are merged in pairs.

    Args:
        ranges: Consecutive ranges, starting at row 0.
        grain: Number of rows up to which ranges are merged in any case.
    """
    merged: list[ChunkRange] = []
    for following in ranges:
        _append(merged, following, grain)
        if len(merged) > MOST_CHUNKS:
            grain *= 2
            merged = _coarsened(merged, grain)
    return merged


def _coarsened(ranges: Iterable[ChunkRange], chunk_rows: int) -> list[ChunkRange]:
    merged: list[ChunkRange] = []
    for following in ranges:
        _append(merged, following, chunk_rows)
    return merged


def _append(merged: list[ChunkRange], following: ChunkRange, chunk_rows: int) -> None:
    """Merge a range into the last one if both are in one file and within `chunk_rows` and `LARGEST_CHUNK_BYTES`."""
    last = merged[-1] if merged else None
    if (
        last is None
        or following.stop_row - last.start_row > chunk_rows
        or not _goes_on(last, following)
        or following.locator.get("offset", 0) - last.locator.get("offset", 0) > LARGEST_CHUNK_BYTES
    ):
        merged.append(following)
    else:
        merged[-1] = ChunkRange(last.start_row, following.stop_row, last.locator)


def _goes_on(last: ChunkRange, following: ChunkRange) -> bool:
    """Whether a range continues another one in the same file; an input may name the same file twice in a row."""
    before, after = last.locator, following.locator
    if any(before.get(fact) != after.get(fact) for fact in _FILE_FACTS):
        return False
    place_before, place_after = _place(before), _place(after)
    return place_after > place_before or (place_after == place_before and after["row"] == before["row"])


def _place(locator: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted((name, value) for name, value in locator.items() if name not in _FILE_FACTS and name != "row")
