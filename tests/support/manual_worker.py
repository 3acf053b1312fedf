"""A slot's worker driven by the test: answers its doorbell on a real Redis and works leases without any model."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable

import redis

from jobs import queue
from jobs.config.settings import Settings
from jobs.data.rows import Result
from jobs.data.sinks import open_sink
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import LostLease
from jobs.ledger import chunks, slots
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leasing import leases
from jobs.ledger.leasing.leases import WorkingLease


class ManualWorker:
    """One online slot that does chunks when the test calls it."""

    def __init__(self, slot_id: str, database: Database, store: Store, settings: Settings) -> None:
        self.slot_id, self.incarnation = slot_id, f"{slot_id}-1"
        self._db, self._store, self._settings = database, store, settings
        self._redis = queue.connect(settings, timeout_seconds=300.0)
        slots.register(database, [slots.SlotInfo(slot_id, "host", "cpu", None, "CPU", 0, 1)])
        slots.enter(database, slot_id, self.incarnation, settings)

    def close(self) -> None:
        """Close the connection to Redis."""
        self._redis.close()

    def answer(self, timeout_seconds: float = 30.0) -> str | None:
        """Wait for the doorbell. Returns the lease id, which must be the only content of the message."""
        key = f"stoker:{queue.queue_name(self.slot_id)}"
        try:
            popped = self._redis.blpop([key], timeout=timeout_seconds)
        except redis.TimeoutError:
            return None
        if popped is None:
            return None
        message = json.loads(popped[1])
        args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
        assert message["headers"]["task"] == queue.TASK
        assert (len(args), kwargs) == (1, {}), "a message carries one lease id and nothing else"
        return str(args[0])

    def take_up(self, lease_id: str) -> WorkingLease | None:
        """Activate a lease, as a keeper does."""
        return leases.activate(self._db, lease_id, self.incarnation, lease_seconds=self._settings.lease_seconds)

    def work(self, lease: WorkingLease, *, max_chunks: int | None = None) -> int:
        """Claim and record chunks until none is left to claim or `max_chunks` are done; returns the number done."""
        spec = lease.spec
        sink = open_sink(spec.output, vector_output=spec.vector_output, database=self._db, store=self._store)
        done = 0
        while max_chunks is None or done < max_chunks:
            claims = chunks.claim(self._db, lease.lease_id, limit=1)
            if not claims:
                break
            for claim in claims:
                results = [
                    Result(row, None, [{"label": "a", "score": float(row)}], num_tokens=3)
                    for row in range(claim.start_row, claim.stop_row)
                ]
                part = sink.stage(lease.job_id, lease.lease_id, claim.start_row, results)
                chunk = ChunkResults(claim.start_row, claim.stop_row, results, part)
                chunks.commit(
                    self._db, lease.lease_id, [chunk],
                    lambda session, results=results: sink.record(session, lease.job_id, results),
                )  # fmt: skip
                done += 1
        return done

    def serve(self, doorbell: queue.Doorbell, stopping: Callable[[], bool]) -> threading.Thread:
        """Answer, work and release leases in a thread until `stopping` returns true, as a real worker does."""

        def run() -> None:
            while not stopping():
                slots.beat(self._db, self.slot_id, self.incarnation, [])
                lease_id = self.answer(timeout_seconds=0.5)
                lease = None if lease_id is None else self.take_up(lease_id)
                if lease is None:
                    continue
                try:
                    self.work(lease)
                    leases.release(self._db, lease.lease_id, "drained")
                except LostLease:
                    continue
                finally:
                    doorbell.wake()

        thread = threading.Thread(target=run, name=f"worker-{self.slot_id}")
        thread.start()
        return thread
