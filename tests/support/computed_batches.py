"""OpenAI batches from the SDK to their output files, with rows that a real tiny model computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai

from jobs.db.states import BatchState
from jobs.db.tables import Batch
from jobs.errors import UserError
from jobs.ledger import jobs as job_ledger
from jobs.specs.inference import parse_spec
from scheduler.admin.keys import create_key
from scheduler.control.planning.planner import open_input
from tests.support.batch_scheduler import BatchScheduler
from tests.support.rows import json_lines
from tests.support.sources_kit import read_all
from tests.support.task_kit import load
from tests.support.through_engine import compute


class ComputedBatches:
    """An API and its clients, a scheduler, and a model."""

    def __init__(
        self, url: str, scheduler: BatchScheduler, model: str, folder: Path, parameters: Mapping[str, Any] | None = None
    ) -> None:
        """
        Args:
            url: URL of the API.
            scheduler: The scheduler, whose catalogue has the model.
            model: Name of the model in the catalogue.
            folder: Folder of the model.
            parameters: Parameters that replace those of the jobs.
        """
        self.url, self.scheduler, self.folder = url, scheduler, folder
        self._model, self._parameters = model, dict(parameters or {})

    def client(self, project: str) -> openai.OpenAI:
        """The SDK with a key of a project; not strict, since the purpose `input` is ours."""
        key = create_key(self.scheduler.db, "sdk", project=project).secret
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key)

    def run(self, client: openai.OpenAI, endpoint: Any, bodies: list[dict[str, Any]]) -> Batch:
        """The ended batch of a line for each body, computed by the model."""
        lines = [
            {"custom_id": str(number), "method": "POST", "url": endpoint, "body": {"model": self._model, **body}}
            for number, body in enumerate(bodies)
        ]
        file = client.files.create(file=("b.jsonl", json_lines(lines).encode()), purpose="batch")
        created = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
        with self.scheduler.db.read() as session:
            batch = session.get_one(Batch, created.id)
        batch = self.scheduler.read_batch(batch)
        assert batch.state == BatchState.IN_PROGRESS, batch.errors
        for job in self.scheduler.jobs(batch):
            spec = parse_spec(job.spec)
            try:
                task_model = load(spec.task, self.folder, {**spec.parameters, **self._parameters})
            except UserError as error:  # as in a runner
                job_ledger.fail(self.scheduler.db, job.id, error)
                continue
            source = open_input(
                spec, rules=self.scheduler.settings, store=self.scheduler.store, database=self.scheduler.db
            )
            rows = read_all(source)
            good = [row for row in rows if row.error is None]
            outputs = compute(task_model, good).outputs
            found = {row.row_index: row.error for row in rows}
            found.update({row.row_index: output for row, output in zip(good, outputs, strict=True)})
            self.scheduler.compute(job, found.__getitem__)
        return self.scheduler.finish_batch(batch)

    def bodies(self, client: openai.OpenAI, batch: Batch) -> dict[str, Any]:
        """The bodies of all responses by `custom_id`; of a refused line, its error."""
        shown = client.batches.retrieve(batch.id)
        found = {}
        for file_id in (shown.output_file_id, shown.error_file_id):
            for line in self.scheduler.lines(file_id) if file_id else []:
                body = line["response"]["body"]
                found[line["custom_id"]] = body["error"] if line["response"]["status_code"] != 200 else body
        return found
