"""The client of one Stoker API: submit jobs, find them again, and upload files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field

from scheduler.client.http_client import StokerClient
from scheduler.client.training_paths import adapt_spec
from scheduler.embedded.api_address import find_key, find_url
from scheduler.embedded.read_settings import read_settings

from .job import Job
from .records import JobInfo, JobState
from .specs import JobSpec

_RETRY_SECONDS = 30.0


class UploadedFile(BaseModel):
    """An uploaded file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    filename: str
    num_bytes: int = Field(alias="bytes")
    purpose: str
    expires_at: float | None = None

    @property
    def path(self) -> str:
        """Path of the file for a spec's `input.path`, `data.train` or `data.eval`."""
        return f"file:{self.id}"


class Client:
    """A client of one Stoker API. Threads may share it. Use it in a `with`, or close it.

    Every method raises `ApiError` if the API refuses the request, and `ServiceUnavailable` if the API does not respond.
    While the API does not respond, reads and submissions are retried for `retry_seconds`. No request takes effect
    twice.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        data_dir: Path | str | None = None,
        retry_seconds: float = _RETRY_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """By default, the client uses `STOKER_URL` and `STOKER_API_KEY`. If these are not set, it uses the URL and the
        key of the stack that `stoker up` runs on this machine.

        Args:
            url: URL of the API, such as `http://127.0.0.1:8470`.
            api_key: The API key.
            data_dir: Data directory of the local stack; by default `STOKER_DATA_DIR`, else `~/.stoker`.
            retry_seconds: How long requests are retried while the API does not respond; 0 means a single try.
            transport: Replacement for the network, for tests.

        Raises:
            InvalidSpec: The URL, the key or a setting is not valid.
        """
        settings = read_settings({"url": url, "api_key": api_key, "data_dir": data_dir})
        found = find_url(settings)
        self._http = StokerClient(found, find_key(settings, found), retry_seconds=retry_seconds, transport=transport)
        self.url = self._http.url

    def __repr__(self) -> str:
        return f"<stoker.Client {self.url}>"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self,
        spec: JobSpec | Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        on_upload: Callable[[str, int, int], None] | None = None,
    ) -> Job:
        """Submit a job.

        Relative paths in the spec start at the working directory. If the API runs on another machine, input files are
        uploaded first.

        Args:
            spec: The job: an `InferenceSpec`, a `TrainingSpec`, or a mapping as in a spec file.
            idempotency_key: Two submissions with the same key create one job. By default each call has a new key.
            on_upload: Called during an upload with the file's name, the bytes sent so far, and its size.

        Returns:
            The new job.

        Raises:
            InvalidInput, InvalidModel, InvalidOutput: A file does not exist, or the API cannot read it.
            ApiError: The API refuses the spec; `param` names the invalid field.
        """
        if isinstance(spec, Mapping):
            document = dict(spec)
        else:
            document = {"kind": spec.kind, **spec.model_dump(mode="json", exclude_unset=True)}
        adapted = adapt_spec(document, self._http, on_upload=on_upload)
        return self._job(self._http.submit(adapted, idempotency_key=idempotency_key))

    def job(self, job_id: str) -> Job:
        """Return a job that was submitted before.

        Raises:
            ApiError: There is no such job; the error's `status` is 404.
        """
        return self._job(self._http.job(job_id))

    def jobs(self, *, state: JobState | str | None = None, limit: int | None = None) -> Iterator[Job]:
        """Yield jobs, newest first, fetched page by page.

        Args:
            state: Only jobs in this state.
            limit: Maximum number of jobs.
        """
        for document in self._http.jobs(state=None if state is None else str(state), limit=limit):
            yield self._job(document)

    def upload(
        self, path: Path | str, *, purpose: str = "input", on_progress: Callable[[int], None] | None = None
    ) -> UploadedFile:
        """Upload a file as a stream.

        Args:
            path: The file to upload.
            purpose: `input`, or `batch` for a batch of the `openai` SDK.
            on_progress: Called with the number of bytes sent so far.

        Returns:
            The uploaded file; its `path` names it in a spec.

        Raises:
            NotFound: There is no such file.
        """
        document = self._http.upload(Path(path), purpose=purpose, on_progress=on_progress)
        return UploadedFile.model_validate(document)

    def _job(self, document: Mapping[str, Any]) -> Job:
        return Job(self._http, JobInfo.model_validate(document))
