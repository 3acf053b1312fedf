"""The client of one Stoker: submits jobs, finds them again, and uploads files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field

from scheduler.client.http_client import StokerClient
from scheduler.client.training_paths import bring_spec
from scheduler.embedded.api_address import find_key, find_url
from scheduler.embedded.read_settings import read_settings

from .job import Job
from .records import JobInfo, JobState
from .specs import JobSpec

_RETRY_SECONDS = 30.0


class UploadedFile(BaseModel):
    """A file that the API keeps."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    filename: str
    num_bytes: int = Field(alias="bytes")
    purpose: str
    expires_at: float | None = None

    @property
    def path(self) -> str:
        """What names it in a spec's `input.path`, `data.train` or `data.eval`."""
        return f"file:{self.id}"


class Client:
    """A client of one Stoker. Threads may share it; use it in a `with`, or close it.

    Every method raises `ApiError` where the API refuses, and `ServiceUnavailable` where nothing answers. Reading and
    submitting are tried again for `retry_seconds` while the API is away; nothing is ever carried out twice.
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
        """Without arguments, the client uses `STOKER_URL` and `STOKER_API_KEY` or, where these are not set, the URL and
        the key of the stack that `stoker up` runs on this machine.

        Args:
            url: Where the API is, such as `http://127.0.0.1:8470`.
            api_key: The key to send.
            data_dir: The data directory of the local stack; `~/.stoker` or `STOKER_DATA_DIR` when absent.
            retry_seconds: How long an API that does not answer is asked again; 0 asks once.
            transport: For tests.

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

        Relative paths in the spec start at the working directory. Where the API is on another machine, input files are
        uploaded first.

        Args:
            spec: What to do: `InferenceSpec`, `TrainingSpec`, or a mapping as in a spec file.
            idempotency_key: Two submissions with one key make one job; a fresh key when absent.
            on_upload: Called with a file's name, the bytes sent so far and its size while it is uploaded.

        Raises:
            InvalidInput, InvalidModel, InvalidOutput: A file is not there, or is where the API cannot get at it.
            ApiError: The API refuses the spec; `param` names the field.
        """
        if isinstance(spec, Mapping):
            document = dict(spec)
        else:
            document = {"kind": spec.kind, **spec.model_dump(mode="json", exclude_unset=True)}
        brought = bring_spec(document, self._http, on_upload=on_upload)
        return self._job(self._http.submit(brought, idempotency_key=idempotency_key))

    def job(self, job_id: str) -> Job:
        """A job that was submitted before.

        Raises:
            ApiError: There is no such job; its `status` is 404.
        """
        return self._job(self._http.job(job_id))

    def jobs(self, *, state: JobState | str | None = None, limit: int | None = None) -> Iterator[Job]:
        """Jobs, newest first, fetched page by page.

        Args:
            state: Only jobs in this state.
            limit: At most this number of jobs.
        """
        for document in self._http.jobs(state=None if state is None else str(state), limit=limit):
            yield self._job(document)

    def upload(
        self, path: Path | str, *, purpose: str = "input", on_progress: Callable[[int], None] | None = None
    ) -> UploadedFile:
        """Upload a file, streamed.

        Args:
            path: The file. Its `path` in the answer names it in a spec.
            purpose: `input`, or `batch` for a batch of the `openai` SDK.
            on_progress: Called with the number of bytes sent so far.

        Raises:
            NotFound: There is no such file.
        """
        document = self._http.upload(Path(path), purpose=purpose, on_progress=on_progress)
        return UploadedFile.model_validate(document)

    def _job(self, document: Mapping[str, Any]) -> Job:
        return Job(self._http, JobInfo.model_validate(document))
