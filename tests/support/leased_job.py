"""A planned job over a real file on a real database, with leases, for tests of code that works on leases."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col

from jobs.access.pins import PinnedRevision, Pins
from jobs.config.settings import Settings
from jobs.data.rows import Result
from jobs.data.sinks import Sink, open_sink
from jobs.data.sources import Source, open_source
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.tables import Chunk, Job, StoredFile
from jobs.ledger import jobs as job_ledger
from jobs.ledger import planning, slots
from jobs.ledger.job_pins import pin_spec
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.leasing.leases import WorkingLease
from jobs.specs.inference import InferenceSpec, parse_spec
from tests.support.rows import write_rows

_LEASE_SECONDS = 120.0


class LeasedJob:
    """One inference job whose input is a list of records."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        folder: Path,
        records: Sequence[dict[str, Any] | str],
        *,
        chunk_rows: int = 8,
        **spec: Any,
    ) -> None:
        """
        Args:
            records: Lines of the input file; a string is written unchanged.
            spec: Fields of the job's spec other than the input.
        """
        self.database, self.settings = database, settings
        self.input = write_rows(folder / "rows.jsonl", records)
        self.store = Store(settings.resolved_store_url)
        document = {"task": "fill-mask", "model": "scripted", **spec, "input": {"path": str(self.input), "key": "id"}}
        self.spec: InferenceSpec = parse_spec(document)
        self.job_id = job_ledger.submit(database, self.spec).id
        # The commit of a model that is not a folder would be looked up on the hub.
        pins = pin_spec(self.spec, settings)
        if pins == Pins():
            pins = Pins(model=PinnedRevision("main"))
        planning.plan(database, self.job_id, self.source().index(chunk_rows), pins=pins)

    @staticmethod
    def spec_of(model: str) -> InferenceSpec:
        """A spec of another job with this model."""
        return parse_spec({"task": "fill-mask", "model": model, "input": {"path": "rows.jsonl"}})

    def source(self) -> Source:
        """The job's input."""
        return open_source(
            self.spec.input,
            self.spec.columns(),
            rules=self.settings,
            store=self.store,
            find_upload=_no_uploads,
            optional=self.spec.optional_inputs,
        )

    def sink(self) -> Sink:
        """The job's output."""
        return open_sink(
            self.spec.output,
            vector_output=self.spec.vector_output,
            database=self.database,
            store=self.store,
        )

    def lease(self, slot_id: str = "slot-0") -> WorkingLease:
        """An active lease on a new slot."""
        slots.register(self.database, [slots.SlotInfo(slot_id, "host", "cpu", None, "CPU", 0, 1)])
        slots.enter(self.database, slot_id, f"{slot_id}-1", self.settings)
        (lease_id,) = grants.grant(self.database, Grant(self.job_id, (slot_id,)), lease_seconds=_LEASE_SECONDS)
        lease = leases.activate(self.database, lease_id, f"{slot_id}-1", lease_seconds=_LEASE_SECONDS)
        assert lease is not None
        return lease

    def job(self) -> Job:
        """The job's current row in the database."""
        with self.database.read() as session:
            return session.get_one(Job, self.job_id)

    def chunks(self) -> list[Chunk]:
        """The job's chunks in row order."""
        with self.database.read() as session:
            ours = select(Chunk).where(col(Chunk.job_id) == self.job_id).order_by(col(Chunk.start_row))
            return list(session.scalars(ours))

    def states(self) -> list[str]:
        """States of the job's chunks in row order."""
        return [str(chunk.state) for chunk in self.chunks()]

    def set_chunk(self, start_row: int, **values: Any) -> None:
        """Set columns of a chunk."""
        with self.database.write() as session:
            session.execute(
                update(Chunk)
                .where(col(Chunk.job_id) == self.job_id, col(Chunk.start_row) == start_row)
                .values(**values)
            )

    def results(self) -> list[Result]:
        """Recorded results in row order."""
        return list(self.sink().read(self.job_id))


def _no_uploads(file_id: str) -> StoredFile:
    raise AssertionError(f"no upload is used here, yet '{file_id}' was asked for")


def threads_of_the_pipeline() -> list[str]:
    """Names of the inference pipeline's threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("feed-", "writer-"))]
