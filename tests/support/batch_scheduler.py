"""The scheduler's part in batches: duties called one by one, and results that the test writes instead of a worker."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from jobs.config.settings import Settings
from jobs.data.rows import Result, RowError
from jobs.data.sinks import open_sink
from jobs.data.store import Store
from jobs.data.store_keys import upload_key
from jobs.db.database import Database
from jobs.db.tables import Batch, Job, StoredFile
from jobs.ledger import chunks, slots
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.groups import batches
from jobs.ledger.groups.batches import NewBatch
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.specs.inference import parse_spec
from scheduler.control.finalizer import finalize_job
from scheduler.control.planning.planner import plan_job
from scheduler.openai.lifecycle import finish_batch, read_batch
from tests.support.rows import json_lines


class BatchScheduler:
    """A database, a store and the duties on them."""

    def __init__(self, db: Database, settings: Settings, models: Mapping[str, Mapping[str, str]]) -> None:
        """`models` is the catalogue."""
        self.db, self.store = db, Store(settings.resolved_store_url)
        self.settings = Settings(**{**settings.model_dump(exclude_unset=True), "models": models})

    def upload(self, lines: list[Any]) -> str:
        """The id of a batch file; equal lines are one file."""
        text = json_lines(lines)
        file_id = f"file_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        stored = self.store.put(upload_key(file_id), [text.encode()])
        with self.db.write() as session:
            file = StoredFile(
                id=file_id, filename="b.jsonl", purpose="batch", key=stored.key, num_bytes=stored.num_bytes,
                sha256=stored.sha256, created_at=session.time(),
            )  # fmt: skip
            session.merge(file)
        return file_id

    def create(self, lines: list[Any], **fields: Any) -> Batch:
        """A validating batch of these lines."""
        request = {
            "endpoint": "/v1/classify",
            "completion_window": "1d",
            "window_seconds": 86400,
            "digest": "d",
            **fields,
        }
        return batches.create(self.db, NewBatch(input_file_id=self.upload(lines), **request), project="default")

    def read_batch(self, batch: Batch) -> Batch:
        """The batch after its reading."""
        read_batch(self.db, self.store, self.settings, batch.id)
        return self.look(batch)

    def finish_batch(self, batch: Batch) -> Batch:
        """The batch after a try to finish it."""
        finish_batch(self.db, self.store, self.settings, batch.id)
        return self.look(batch)

    def look(self, batch: Batch) -> Batch:
        """The batch as it is now."""
        with self.db.read() as session:
            return batches.get(session, batch.id)

    def jobs(self, batch: Batch) -> list[Job]:
        """Its jobs as they are now."""
        with self.db.read() as session:
            return batches.jobs_of(session, batch.id)

    def compute(self, job: Job, answer: Callable[[int], Any], *, most_chunks: int = 100) -> None:
        """Plan a job and record results for some of its chunks, as a worker does."""
        plan_job(self.db, self.store, self.settings, job.id)
        slots.register(self.db, [slots.SlotInfo("s", "host", "cpu", None, "CPU", 0, 1)])
        slots.enter(self.db, "s", "worker", self.settings)
        (lease_id,) = grants.grant(self.db, Grant(job.id, ("s",)), lease_seconds=60)
        assert leases.activate(self.db, lease_id, "worker", lease_seconds=60) is not None
        spec = parse_spec(job.spec)
        sink = open_sink(spec.output, vector_output=spec.vector_output, database=self.db, store=self.store)
        for claim in chunks.claim(self.db, lease_id, limit=most_chunks):
            results = [self._result(row, answer(row)) for row in range(claim.start_row, claim.stop_row)]
            chunk = ChunkResults(claim.start_row, claim.stop_row, results, None)
            chunks.commit(self.db, lease_id, [chunk], lambda session, r=results: sink.record(session, job.id, r))
        leases.release(self.db, lease_id, "drained")
        finalize_job(self.db, self.store, self.settings, job.id)

    def _result(self, row: int, answer: Any) -> Result:
        error = answer if isinstance(answer, RowError) else None
        return Result(row, None, None if error else answer, error, num_tokens=3)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of an output or error file."""
        with self.db.read() as session:
            file = session.get(StoredFile, file_id)
        assert file is not None
        with self.store.open(file.key) as content:
            return [json.loads(line) for line in content]
