"""The check at submission that some slot has all that a job needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from jobs.data.sources import ChunkRange, Source
from jobs.data.sources.media import is_compressed_sound
from jobs.db.database import Database
from jobs.ledger.slots import none_meets
from jobs.specs.needs import Need, Needs
from jobs.specs.packages import AV, PackageNeed


def check_needs(needs: Iterable[Need], database: Database) -> None:
    """Check that one slot has all that a job needs. Accepts the job if no slot's worker runs.

    Raises:
        InvalidSpec: No slot has a thing, or no slot has it beside the others; the message says what is missing.
    """
    others = Needs()
    for need in needs:
        together = others.together_with(need.part)
        with database.read() as session:
            is_missing = none_meets(session, together)
        if is_missing:
            raise need.error(f" beside {others}" if others != Needs() else "")
        others = together


def needs_of_sound(source: Source, first: ChunkRange, *, param: str) -> Iterator[Need]:
    """What the kind of sound in the first row needs. Whether a WAV file needs a package depends on the model.

    Args:
        source: The rows.
        first: The range that begins with the first row.
        param: The field of the spec that names the rows' sounds.
    """
    for row in source.read(first.start_row, first.start_row + 1, first.locator):
        if is_compressed_sound(row.values.get("audio")):
            yield PackageNeed(AV, param, "the first row's sound is not a WAV file, and it")
