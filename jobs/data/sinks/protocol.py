"""The protocols of a sink and of the file format of a file sink."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Protocol, TypeAlias

from sqlmodel import Session

from jobs.data.drafts import Draft, StoredObject
from jobs.data.rows import Result

Output: TypeAlias = BinaryIO | Draft
"""The type of file that a result file is written to."""


@dataclass(frozen=True, slots=True)
class NamedObject:
    """An artifact with a job's results that a sink wrote."""

    name: str
    """Name that the user sees, such as `results.jsonl`."""
    stored: StoredObject


class Sink(Protocol):
    """Stores a job's results. The runner calls `stage` and `record`, the API `read`, and the finalizer `merge`."""

    makes_files: ClassVar[bool]
    """Whether `merge` has anything to write. If not, a job completes with its last chunk, without the finalizer."""

    def stage(self, job_id: str, lease_id: str, start_row: int, results: Sequence[Result]) -> str | None:
        """Write what the sink keeps outside the database, before the chunk's transaction begins.

        Returns:
            The store key for `Chunk.part`, or None if nothing was written outside the database.

        Raises:
            InvalidOutput: An output cannot be written as JSON.
            ServiceUnavailable: The store cannot be reached or is full.
        """

    def record(self, session: Session, job_id: str, results: Sequence[Result]) -> None:
        """Write a chunk's results inside its fenced transaction.

        Raises:
            InvalidOutput: An output cannot be written as JSON.
        """

    def read(self, job_id: str, *, after_row: int = -1, limit: int | None = None) -> Iterator[Result]:
        """Yield the results of the job's recorded chunks in row order, in bounded memory and short transactions.

        Args:
            after_row: Only results of rows after this one are read.
            limit: Maximum number of results; None for no limit.
        """

    def merge(self, job_id: str) -> list[NamedObject]:
        """Write the artifacts of a job whose chunks are all recorded; the database sink has none.

        Raises:
            StokerError: A row has no result because of a bug in Stoker; nothing was written.
            ServiceUnavailable: The store cannot be reached or is full.
        """


class ResultWriter(Protocol):
    """Writes one file of results, in the order in which they are added."""

    def add(self, results: Iterable[Result]) -> int:
        """Write results. Returns the number written."""


class PartWriter(ResultWriter, Protocol):
    """Writes one file of results, and also appends whole parts of the same format without parsing them."""

    def append(self, part: BinaryIO) -> int:
        """Write all results of a part. Returns the number written."""


class PartFormat(Protocol):
    """A file format for parts and for merged results."""

    suffix: str
    """Suffix of its file names, with the dot."""

    def writer(self, out: Output) -> AbstractContextManager[PartWriter]:
        """Write a file to `out`. The file is complete when the block ends; `out` stays open."""

    def read(self, part: BinaryIO, *, skip: int = 0) -> Iterator[Result]:
        """Yield the results of a file after the first `skip`."""
