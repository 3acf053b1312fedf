"""A job that was submitted: wait for it, watch it, read what it made, cancel it."""

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
    """A handle on one job. `info` is the job as it was last seen; `refresh`, `wait` and `watch` look again."""

    def __init__(self, http: StokerClient, info: JobInfo) -> None:
        """Use `Client.submit` or `Client.job`."""
        self._http = http
        self.info = info

    def __repr__(self) -> str:
        return f"<stoker.Job {self.id} {self.state}>"

    @property
    def id(self) -> str:
        """The job's id. A spec that says `model: job:<id>` uses the model that this training makes."""
        return self.info.id

    @property
    def state(self) -> JobState:
        """The state as it was last seen."""
        return self.info.state

    @property
    def counts(self) -> Counts:
        """The rows or steps as they were last seen."""
        return self.info.counts

    def refresh(self) -> JobInfo:
        """Look again. Returns the job as it is now."""
        return self._seen(self._http.job(self.id))

    # -- its life

    def watch(self, *, timeout_seconds: float | None = None) -> Iterator[JobInfo]:
        """The job at once, then at each change of its state or counts, its end last; over restarts of the API.

        Raises:
            TimeoutError: The job has not ended in time; it goes on.
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
            timeout_seconds: How long to wait; for ever when absent.
            on_progress: Called with the job at once, at each change of its state or counts, and at its end.
            check: Whether a job that ended without completing is an error.

        Raises:
            JobFailed: The job failed, was cancelled, or its time limit passed.
            TimeoutError: The job has not ended in time; it goes on.
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
        """Ask the job to stop; `wait(check=False)` waits until it has.

        Raises:
            ApiError: The job has ended already; the `status` is 409.
        """
        return self._seen(self._http.cancel(self.id))

    def retry(self) -> Job:
        """Submit a failed, cancelled or expired job again. Returns the new job."""
        return Job(self._http, JobInfo.model_validate(self._http.retry(self.id)))

    # -- what it made

    def results(self, *, after_row: int = -1, limit: int | None = None) -> Iterator[Result]:
        """The results in row order, streamed; of a job that still runs, those recorded so far.

        Args:
            after_row: Only rows with a larger index, so that an interrupted reading can go on.
            limit: At most this number of rows.
        """
        for line in self._http.iter_results(self.id, after_row=after_row, limit=limit):
            error = None if line["error"] is None else RowError(**line["error"])
            yield Result(line["row_index"], line["key"], line["output"], error)

    def save_results(self, path: Path | str) -> int:
        """Write the results to a file, which appears whole or not at all. Returns its size in bytes.

        Args:
            path: The file; its ending tells the format: `.jsonl`, `.parquet` or `.csv`.

        Raises:
            InvalidOutput: The ending tells no format, or the file cannot be written.
        """
        target = Path(path)
        formats = {f".{name}": name for name in get_args(ResultFormat)}
        if target.suffix.lower() not in formats:
            raise InvalidOutput(f"path: {shown(str(path))} must end in {', '.join(formats)}", param="path")
        return self._http.results(self.id, target, format=formats[target.suffix.lower()])

    def to_arrow(self) -> pyarrow.Table:
        """The results as an Arrow table: `row_index`, `key`, `output`, `error`.

        `output` is a list of float32 for `embeddings` and JSON text otherwise; `error` is JSON text.
        """
        import pyarrow.parquet

        with tempfile.TemporaryDirectory(prefix="stoker-results-") as folder:
            path = Path(folder, "results.parquet")
            self._http.results(self.id, path, format="parquet")
            return pyarrow.parquet.read_table(path)

    def to_pandas(self) -> pandas.DataFrame:
        """The results as a data frame: `row_index`, `key`, `output`, `error`.

        `output` is a float32 array for `embeddings` and the value in the pipeline's shape otherwise; `error` is a
        mapping with `code` and `message`. Each is None where there is the other.
        """
        import pyarrow

        table = self.to_arrow()
        frame = table.to_pandas()
        for name in ("output", "error"):
            if pyarrow.types.is_string(table.schema.field(name).type):
                frame[name] = [None if text is None else orjson.loads(text) for text in table[name].to_pylist()]
        return frame

    def artifacts(self) -> list[Artifact]:
        """The files that the job made."""
        return [Artifact.model_validate(document) for document in self._http.artifacts(self.id)]

    def save_artifacts(self, folder: Path | str) -> list[Path]:
        """Write every artifact under a folder, which is made where it is missing. Returns the files.

        Raises:
            InvalidOutput: A file cannot be written.
        """
        found = self._http.artifacts(self.id)
        return [path for _, path in fetch_artifacts(self._http, self.id, found, Path(folder))]

    # -- what is known about it

    def metrics(self, *, name: str | None = None, after_step: int = -1) -> list[Metric]:
        """The numbers of a training by step.

        Args:
            name: Only the metric of this name, such as `loss`.
            after_step: Only steps after this one.
        """
        documents = self._http.metrics(self.id, name=name, after_step=after_step)
        return [Metric.model_validate(document) for document in documents]

    def events(self, *, follow: bool = False) -> Iterator[Event]:
        """The job's history, oldest first; with `follow` until the job has ended."""
        for document in self._http.events(self.id, follow=follow):
            yield Event.model_validate(document)

    def logs(self, *, follow: bool = False) -> Iterator[LogLine]:
        """What the job's runners logged, oldest first; with `follow` until the job has ended."""
        for document in self._http.logs(self.id, follow=follow):
            yield LogLine.model_validate(document)

    def _seen(self, document: dict[str, Any]) -> JobInfo:
        self.info = JobInfo.model_validate(document)
        return self.info
