"""Arrays and sweeps as a scheduler without a thread makes them: its duties are called one by one."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.data.store_keys import artifact_key
from jobs.db.database import Database
from jobs.db.states import LIVE_JOB_STATES, JobState
from jobs.db.tables import Artifact, Job, Metric
from jobs.errors import StokerError
from jobs.ledger import jobs as job_ledger
from jobs.ledger.groups import arrays
from jobs.specs.array_spec import parse_submission
from scheduler.control.finalizer import finalize_job
from scheduler.control.planning.arrays import fill_array, plan_any
from tests.support.ledger import set_job

TEMPLATE = {"task": "embeddings", "model": "org/${value}", "input": {"path": "x.jsonl"}}


class Arrays:
    """The duties of a scheduler that concern arrays, called one by one."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self.db, self.settings, self.store = db, settings, Store(settings.resolved_store_url)

    def submit(self, number: int, *, max_parallel: int = 3, **fields: Any) -> str:
        field = {"values": [f"m{index}" for index in range(number)], "max_parallel": max_parallel}
        spec = parse_submission({**TEMPLATE, "array": field, **fields})
        job_id = job_ledger.submit(self.db, spec, project="p").id
        plan_any(self.db, self.store, self.settings, job_id)
        self.fill(job_id)
        return job_id

    def fill(self, array_id: str) -> None:
        fill_array(self.db, self.store, self.settings, array_id)

    def look(self, job_id: str) -> Job:
        with self.db.read() as session:
            return job_ledger.get(session, job_id)

    def children(self, array_id: str, *states: JobState) -> list[Job]:
        of_array = select(Job).where(col(Job.parent_id) == array_id).order_by(col(Job.child_index))
        with self.db.read() as session:
            return [child for child in session.scalars(of_array) if not states or child.state in states]

    def ready(self, array_id: str) -> list[Job]:
        return [child for child in self.children(array_id, *LIVE_JOB_STATES) if child.ready_at is not None]

    def end(self, child: Job, *, completes: bool = True) -> None:
        if completes:
            set_job(self.db, child.id, state=JobState.FINALIZING)
            job_ledger.complete(self.db, child.id, [])
        else:
            job_ledger.fail(self.db, child.id, StokerError("it broke"))

    def to_fill(self) -> list[str]:
        with self.db.read() as session:
            return arrays.to_fill(session)


def sweep_document(trials: int, **changed: Any) -> dict[str, Any]:
    """A sweep over the learning rate, from 0.1 to 0.9."""
    return {
        "kind": "training",
        "trainer": "torch",
        "module": "recipes.lstm",
        "options": {"learning_rate": "${lr}"},
        "sweep": {"parameters": {"lr": {"low": 0.1, "high": 0.9}}, "trials": trials, "metric": "eval_loss", **changed},
    }


def sweep(system: Arrays, trials: int, **changed: Any) -> str:
    """Submit a sweep and make its first trials."""
    job_id = job_ledger.submit(system.db, parse_submission(sweep_document(trials, **changed)), project="p").id
    plan_any(system.db, system.store, system.settings, job_id)
    system.fill(job_id)
    return job_id


def train(system: Arrays, child: Job, *losses: float | None) -> None:
    """Complete a trial with these values of its metric and a model."""
    with system.db.write() as tx:
        for step, loss in enumerate(losses):
            tx.add(Metric(job_id=child.id, step=step, name="eval_loss", value=loss, attempt=1))
        tx.add(
            Artifact(job_id=child.id, name="model/w", key=f"jobs/{child.id}/w", num_bytes=1, sha256="0", created_at=1)
        )
    system.end(child)


def finish(system: Arrays, sweep_id: str) -> dict[str, Any]:
    finalize_job(system.db, system.store, system.settings, sweep_id)
    assert system.look(sweep_id).state == JobState.COMPLETED
    with system.store.open(artifact_key(sweep_id, "sweep.json")) as file:
        return dict(json.loads(file.read()))
