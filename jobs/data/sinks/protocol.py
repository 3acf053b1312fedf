"""What a sink is, and what the file format of a file sink is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeAlias

from sqlmodel import Session

from jobs.data.rows import Result
from jobs.data.store import Draft, StoredObject

Output: TypeAlias = BinaryIO | Draft
"""What a result file is written to."""


@dataclass(frozen=True, slots=True)
class NamedObject:
    """An artifact that a sink made of a job's results."""

    name: str
    """As the user sees it, such as `results.jsonl`."""
    stored: StoredObject


class Sink(Protocol):
    """Where a job's results go: the runner calls stage and record, the API read, the finalizer merge."""

    def stage(self, job_id: str, lease_id: str, start_row: int, results: Sequence[Result]) -> str | None:
        """Write what must stand outside the database before a chunk's transaction begins.

        Returns:
            The store key for `Chunk.part`, or None where nothing is written outside.

        Raises:
            InvalidOutput: an output cannot be written as JSON.
            ServiceUnavailable: the store cannot be reached or is full.
        """

    def record(self, session: Session, job_id: str, results: Sequence[Result]) -> None:
        """Write a chunk's results inside its fenced transaction.

        Raises:
            InvalidOutput: an output cannot be written as JSON.
        """

    def read(self, job_id: str, *, after_row: int = -1, limit: int | None = None) -> Iterator[Result]:
        """The results of the job's recorded chunks in row order, in bounded memory and without a lasting transaction.

        Args:
            after_row: only results of later rows.
            limit: at most so many.
        """

    def merge(self, job_id: str) -> list[NamedObject]:
        """Make the artifacts of a job whose every chunk is recorded; none for the database.

        Raises:
            StokerError: a row has no result, so there must be a fault of ours; nothing was written.
            ServiceUnavailable: the store cannot be reached or is full.
        """


class ResultWriter(Protocol):
    """Writes one file of results, in the order they come."""

    def add(self, results: Iterable[Result]) -> int:
        """Write results. Returns how many."""


class PartWriter(ResultWriter, Protocol):
    """Writes one file of results, and takes whole parts of the same format without making results of them."""

    def append(self, part: BinaryIO) -> int:
        """Write all results of a part. Returns how many."""


class PartFormat(Protocol):
    """A file format that parts and merged results have."""

    suffix: str
    """Ending of its file names, with the dot."""

    def writer(self, out: Output) -> AbstractContextManager[PartWriter]:
        """Write a file to `out`, which is complete when the block ends and stays open."""

    def read(self, part: BinaryIO, *, skip: int = 0) -> Iterator[Result]:
        """The results of a file, without the first `skip`."""
