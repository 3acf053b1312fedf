"""A submitted job: wait for it, watch it, read its results, cancel it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import orjson

from jobs.data.rows import RowError
from jobs.errors import InvalidOutput
from jobs.messages import shown
from scheduler.client.artifact_files import fetch_artifacts
from scheduler.client.http_client import ResultFormat, StokerClient

from .errors import JobFailed
from .records import Artifact, Counts, Event, JobInfo, JobState, LogLine, Metric, Result

if TYPE_CHECKING:
    import pandas
    import pyarrow


class Job:
    """A handle of one job. `info` is its last known state; `refresh`, `wait` and `watch` update it."""

    def __init__(self, http: StokerClient, info: JobInfo) -> None:
        """Call `Client.submit` or `Client.job` instead."""
        self._http = http
        self.info = info

    def __repr__(self) -> str:
        return f"<stoker.Job {self.id} {self.state}>"

    @property
    def id(self) -> str:
        """Id of the job. A spec with `model: job:<id>` uses the model of this training."""
        return self.info.id

    @property
    def state(self) -> JobState:
        """The last known state."""
        return self.info.state

    @property
    def counts(self) -> Counts:
        """The last known counts of rows or steps."""
        return self.info.counts

    def refresh(self) -> JobInfo:
        """Get the current state of the job from the API. Returns it."""
        return self._seen(self._http.job(self.id))

    # -- follow and change it

    def watch(self, *, timeout_seconds: float | None = None) -> Iterator[JobInfo]:
        """Yield the job immediately, and again at each change of its state or counts; the terminal state comes last.

        Restarts of the API do not interrupt the iteration.

        Raises:
            TimeoutError: The job did not end within `timeout_seconds`; it keeps running.
        """
        for document in self._http.watch(self.id, timeout_seconds=timeout_seconds):
            yield self._seen(document)

    def wait(
        self,
        *,
        timeout_seconds: float | None = None,
        on_progress: Callable[[JobInfo], None] | None = None,
        check: bool = True,
    ) -> Job:
        """Wait until the job has ended. Returns this job.

        Args:
            timeout_seconds: Longest wait; None waits without a limit.
            on_progress: Called with the job immediately, at each change of its state or counts, and at its end.
            check: Whether to raise `JobFailed` if the job did not complete.

        Raises:
            JobFailed: The job failed, was cancelled, or exceeded its time limit.
            TimeoutError: The job did not end in time; it keeps running.
        """
        for info in self.watch(timeout_seconds=timeout_seconds):
            if on_progress is not None:
                on_progress(info)
        if not self.info.has_ended:
            self.refresh()
        if check and self.state is not JobState.COMPLETED:
            raise JobFailed(self.info)
        return self

    def cancel(self) -> JobInfo:
        """Cancel the job. `wait(check=False)` waits until it has stopped.

        Raises:
            ApiError: The job has already ended; the error's `status` is 409.
        """
        return self._seen(self._http.cancel(self.id))

    def retry(self) -> Job:
        """Submit a failed, cancelled or expired job again as a new job. Returns the new job."""
        return Job(self._http, JobInfo.model_validate(self._http.retry(self.id)))

    # -- results and artifacts

    def results(self, *, after_row: int = -1, limit: int | None = None) -> Iterator[Result]:
        """Yield the results in row order. A running job yields those recorded so far.

        Args:
            after_row: Only rows with a larger index; pass the last index read to resume.
            limit: Maximum number of rows.
        """
        for line in self._http.iter_results(self.id, after_row=after_row, limit=limit):
            error = None if line["error"] is None else RowError(**line["error"])
            yield Result(line["row_index"], line["key"], line["output"], error)

    def save_results(self, path: Path | str) -> int:
        """Write the results to a file, which appears complete or not at all. Returns its size in bytes.

        Args:
            path: The file. Its suffix selects the format: `.jsonl`, `.parquet` or `.csv`.

        Raises:
            InvalidOutput: The suffix is unknown, or the file cannot be written.
        """
        target = Path(path)
        formats = {f".{name}": name for name in get_args(ResultFormat)}
        if target.suffix.lower() not in formats:
            raise InvalidOutput(f"path: {shown(str(path))} must end in {', '.join(formats)}", param="path")
        return self._http.results(self.id, target, format=formats[target.suffix.lower()])

    def to_arrow(self) -> pyarrow.Table:
        """Return the results as an Arrow table with the columns `row_index`, `key`, `output` and `error`.

        `output` is a list of float32 for the task `embeddings`, and JSON text for other tasks. `error` is JSON text.
        """
        import pyarrow.parquet

        with tempfile.TemporaryDirectory(prefix="stoker-results-") as folder:
            path = Path(folder, "results.parquet")
            self._http.results(self.id, path, format="parquet")
            return pyarrow.parquet.read_table(path)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the results as a data frame with the columns `row_index`, `key`, `output` and `error`.

        `output` is a float32 array for the task `embeddings`, and the output of transformers' pipeline for other tasks.
        `error` is a mapping with `code` and `message`. In each row, one of the two is None.
        """
        import pyarrow

        table = self.to_arrow()
        frame = table.to_pandas()
        for name in ("output", "error"):
            if pyarrow.types.is_string(table.schema.field(name).type):
                frame[name] = [None if text is None else orjson.loads(text) for text in table[name].to_pylist()]
        return frame

    def artifacts(self) -> list[Artifact]:
        """Return the files that the job produced."""
        return [Artifact.model_validate(document) for document in self._http.artifacts(self.id)]

    def save_artifacts(self, folder: Path | str) -> list[Path]:
        """Write all artifacts into a folder, which is created if missing. Returns the files.

        Raises:
            InvalidOutput: A file cannot be written.
        """
        found = self._http.artifacts(self.id)
        return [path for _, path in fetch_artifacts(self._http, self.id, found, Path(folder))]

    # -- metrics, events and logs

    def metrics(self, *, name: str | None = None, after_step: int = -1) -> list[Metric]:
        """Return the metrics of a training, sorted by step.

        Args:
            name: Only the metric with this name, such as `loss`.
            after_step: Only steps after this one.
        """
        documents = self._http.metrics(self.id, name=name, after_step=after_step)
        return [Metric.model_validate(document) for document in documents]

    def events(self, *, follow: bool = False) -> Iterator[Event]:
        """Yield the job's history, oldest first. With `follow`, continue until the job has ended."""
        for document in self._http.events(self.id, follow=follow):
            yield Event.model_validate(document)

    def logs(self, *, follow: bool = False) -> Iterator[LogLine]:
        """Yield the log lines of the job's runners, oldest first. With `follow`, continue until the job has ended."""
        for document in self._http.logs(self.id, follow=follow):
            yield LogLine.model_validate(document)

    def _seen(self, document: dict[str, Any]) -> JobInfo:
        self.info = JobInfo.model_validate(document)
        return self.info
