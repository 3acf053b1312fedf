"""The thin HTTP client of Stoker's API, one method per route, for the CLI and the `stoker` package."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import orjson

from jobs.db.states import JobState
from jobs.errors import NotFound, ServiceUnavailable
from scheduler.client.connection import ApiError, Connection, Json, as_json, segment
from scheduler.client.counted_file import CountedFile
from scheduler.client.event_stream import read_lines
from scheduler.client.local_machine import host_id

__all__ = ["TERMINAL_STATES", "ApiError", "Json", "ResultFormat", "ServiceUnavailable", "StokerClient"]

ResultFormat = Literal["jsonl", "parquet", "csv"]

TERMINAL_STATES = frozenset(state.value for state in JobState if state.is_terminal)
"""Values of a job's `state` that are final."""


class StokerClient:
    """Client of the API at one URL. Threads may share it; close it, or use it in a `with`.

    Every method raises `ApiError` if the API refuses the request, and `ServiceUnavailable` if nothing responds at the
    URL. While the API is unavailable, reads are retried for `retry_seconds`, and so is `submit`, which carries an
    idempotency key; no other request is sent twice. A request that is refused for now (429) is sent again when the
    API says so, also within `retry_seconds`, unless it is an upload.
    """

    def __init__(
        self,
        url: str,
        api_key: str = "",
        *,
        retry_seconds: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: URL of the API, such as `http://127.0.0.1:8470`.
            api_key: Bearer key; if it is empty, none is sent.
            retry_seconds: How long a request is retried while the API does not respond; 0 means a single try.
            transport: Replacement for the network, for tests.
        """
        self._connection = Connection(url, api_key, retry_seconds=retry_seconds, transport=transport)
        self.url = self._connection.url

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the API itself

    def health(self) -> Json:
        """Get `/healthz`, without retries and without a key: `status` (`ok`, `degraded` or `unavailable`), `version`,
        `host_id`, `database`, `redis`, `schema`, `scheduler`, `input_paths`."""
        health = as_json(self._connection.send("GET", "/healthz", accept=(503,)))
        if "host_id" not in health:
            raise ApiError(
                f"the server at {self.url} is not a Stoker API; check the URL", status=502, code="not_stoker"
            )
        return health

    def shares_files(self) -> bool:
        """Whether the API sees the same files as this process and reads inputs by path. If not, upload them."""
        health = self.health()
        return bool(health["input_paths"]) and health["host_id"] == host_id()

    # -- jobs

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Submit a job.

        Args:
            spec: The spec as a document of plain values.
            idempotency_key: Two submissions with the same key create one job. By default each call has a new key.

        Returns:
            The job.
        """
        return as_json(
            self._connection.send(
                "POST",
                "/v1/jobs",
                content=orjson.dumps(spec, default=str),
                headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex, "Content-Type": "application/json"},
                retry_seconds=self._connection.retry_seconds,
            )
        )

    def plan(self, spec: Mapping[str, Any]) -> Json:
        """Say what would happen to a job if it were submitted now: `{total, chunks, forecast{start,end},
        slots[{at,slots}], earliest_promise, delays[{job_id,name,seconds}], delays_elsewhere}`. Changes nothing."""
        return as_json(
            self._connection.send(
                "POST",
                "/v1/plan",
                content=orjson.dumps(spec, default=str),
                headers={"Content-Type": "application/json"},
                retry_seconds=self._connection.retry_seconds,
            )
        )

    def job(self, job_id: str) -> Json:
        """Get one job: `id, object, kind, name, state, spec, priority, counts{total,done,failed}, created_at,
        started_at, ended_at, promise_at, error{code,message}|None, num_tokens, retry_of, attempt, slots_held, doing,
        waiting_reason, forecast{start,end}|None, notices[{code,message,at}]`."""
        return self._connection.get(_job_path(job_id))

    def jobs(self, *, state: str | None = None, parent: str | None = None, limit: int | None = None) -> Iterator[Json]:
        """Yield jobs, newest first, fetched page by page.

        Args:
            state: Only jobs in this state.
            parent: The children of this array; by default, all other jobs.
            limit: Maximum number of jobs.
        """
        yield from self._connection.pages("/v1/jobs", _present(state=state, parent=parent), limit=limit, page=100)

    def jobs_page(
        self, *, after: str | None = None, limit: int = 20, state: str | None = None, parent: str | None = None
    ) -> Json:
        """Get one page of jobs: `{object, data, first_id, last_id, has_more}`; arguments as in `jobs`."""
        return self._connection.get("/v1/jobs", _present(after=after, limit=limit, state=state, parent=parent))

    def cancel(self, job_id: str) -> Json:
        """Ask a job to stop. Returns the job. Raises ApiError with status 409 if it has already ended."""
        return as_json(self._connection.send("POST", _job_path(job_id, "cancel")))

    def retry(self, job_id: str) -> Json:
        """Submit a failed, cancelled or expired job again as a new one. Returns the new job."""
        return as_json(self._connection.send("POST", _job_path(job_id, "retry")))

    def wait(
        self,
        job_id: str,
        on_progress: Callable[[Json], None] | None = None,
        *,
        timeout_seconds: float | None = None,
    ) -> Json:
        """Wait until a job has ended, across restarts of the API.

        Args:
            job_id: Id of the job.
            on_progress: Called with the job immediately, at each change of its state or counts, and at its end.
            timeout_seconds: Longest wait; None waits without a limit.

        Returns:
            The job in its terminal state.

        Raises:
            TimeoutError: The job did not end in time; it keeps running.
        """
        for job in self.watch(job_id, timeout_seconds=timeout_seconds):
            if on_progress is not None:
                on_progress(job)
            if job["state"] in TERMINAL_STATES:
                return job
        return self.job(job_id)

    def watch(self, job_id: str, *, timeout_seconds: float | None = None) -> Iterator[Json]:
        """Yield the job immediately, and again at each change of its state or counts; the terminal state comes last.

        Raises:
            TimeoutError: The job did not end within `timeout_seconds`; it keeps running.
        """
        path = _job_path(job_id, "events")
        for message in self._connection.messages(path, {"progress": "true"}, timeout_seconds=timeout_seconds):
            if message.name == "progress":
                yield message.data

    def events(self, job_id: str, *, after: int = 0, follow: bool = True) -> Iterator[Json]:
        """Yield a job's history, oldest first: `{id, job_id, at, name, data}`.

        Args:
            job_id: Id of the job.
            after: Only events with a larger id.
            follow: Continue until the job has ended, across restarts of the API; else stop after the present events.
        """
        return self._history(_job_path(job_id, "events"), after=after, follow=follow)

    def logs(self, job_id: str, *, after: int = 0, follow: bool = False) -> Iterator[Json]:
        """Yield the lines that the job's runners logged: `{id, job_id, slot_id, lease_id, attempt, at, line}`."""
        return self._history(_job_path(job_id, "logs"), after=after, follow=follow)

    def metrics(self, job_id: str, *, name: str | None = None, after_step: int = -1) -> list[Json]:
        """Get a job's metrics: `{step, name, value}`. For a training, `name` and `after_step` select among them."""
        query = _present(name=name, after_step=after_step)
        return list(self._connection.get(_job_path(job_id, "metrics"), query)["data"])

    def attempts(self, job_id: str) -> list[Json]:
        """Get the attempts of a training, oldest first."""
        return list(self._connection.get(_job_path(job_id, "attempts"))["data"])

    # -- results and artifacts

    def results(self, job_id: str, path: Path, *, format: ResultFormat = "jsonl") -> int:  # noqa: A002
        """Write a job's results to a file, which appears complete or not at all. Returns its size in bytes."""
        return self._connection.download(_job_path(job_id, "results"), path, {"format": format})

    def iter_results(self, job_id: str, *, after_row: int = -1, limit: int | None = None) -> Iterator[Json]:
        """Yield results in row order: `{row_index, key, output, error}`. A running job yields those recorded so far.

        Args:
            job_id: Id of the job.
            after_row: Only rows with a larger index; pass the last index read to resume.
            limit: Maximum number of results.
        """
        query = _present(after_row=after_row, limit=limit)
        with self._connection.stream(_job_path(job_id, "results"), query) as response:
            for line in read_lines(response):
                yield orjson.loads(line)

    def artifacts(self, job_id: str) -> list[Json]:
        """Get the files that a job wrote: `{name, bytes, sha256, created_at}`."""
        return list(self._connection.get(_job_path(job_id, "artifacts"))["data"])

    def download_artifact(self, job_id: str, name: str, path: Path) -> int:
        """Write an artifact to a file, which appears complete or not at all. Returns its size in bytes."""
        return self._connection.download(_job_path(job_id, "artifacts", segment(name, keep="/")), path, {})

    # -- slots, limits and files

    def limits(self, project: str | None = None) -> Json:
        """Get a project's limits and their use: `{object, project, queued_rows{limit,used},
        upload_bytes{limit,used}, requests_per_second, share}`. Only an operator's key may name another project."""
        return self._connection.get("/v1/limits", _present(project=project))

    def shares(self) -> list[Json]:
        """Get the projects' shares of the slots: `{object, project, weight, slots, slots_held, slots_lately,
        gpu_hours{limit,used}}`. Only an operator's key sees other projects than its own."""
        return list(self._connection.get("/v1/limits/shares")["data"])

    def slots(self) -> list[Json]:
        """Get the slots: `{id, object, host, device, device_uuid, name, memory_bytes, num_threads, state, reason,
        warm_models, job_id, lease_id, registered_at, heartbeat_at}`."""
        return list(self._connection.get("/v1/slots")["data"])

    def upload(self, path: Path, *, purpose: str = "input", on_progress: Callable[[int], None] | None = None) -> Json:
        """Upload a file as a stream. A spec refers to it as `file:<id>` in `input.path`.

        Args:
            path: File to upload.
            purpose: `input`, or `batch` for OpenAI batches.
            on_progress: Called with the number of bytes sent so far.

        Returns:
            `{id, object, bytes, created_at, filename, purpose, status, expires_at}`.
        """
        if not path.is_file():
            raise NotFound(f"there is no file '{path}' to upload", param="path")
        name = path.name.encode(errors="surrogateescape").decode(errors="replace")  # form headers are UTF-8
        with CountedFile(path, on_progress or (lambda _sent: None)) as file:
            return as_json(self._connection.send("POST", "/v1/files", form={"purpose": purpose}, file=(name, file)))

    def file(self, file_id: str) -> Json:
        """Get the record of an uploaded file."""
        return self._connection.get(f"/v1/files/{segment(file_id)}")

    def files(self, *, purpose: str | None = None, limit: int | None = None) -> Iterator[Json]:
        """Yield uploaded files, newest first."""
        yield from self._connection.pages("/v1/files", _present(purpose=purpose), limit=limit, page=100)

    def download_file(self, file_id: str, path: Path) -> int:
        """Write an uploaded file to `path`, which appears complete or not at all. Returns its size in bytes."""
        return self._connection.download(f"/v1/files/{segment(file_id)}/content", path, {})

    def delete_file(self, file_id: str) -> None:
        """Delete an uploaded file. Raises ApiError with status 409 while a live job reads it."""
        self._connection.send("DELETE", f"/v1/files/{segment(file_id)}")

    # -- webhooks

    def create_webhook(self, url: str, *, events: Sequence[str] = ()) -> Json:
        """Create a webhook.

        Args:
            url: URL that receives the events.
            events: Types of the events to send; all types if empty.

        Returns:
            `{id, object, url, events, project, created_at, secret}`; no other response contains the secret.
        """
        content, headers = orjson.dumps({"url": url, "events": list(events)}), {"Content-Type": "application/json"}
        return as_json(self._connection.send("POST", "/v1/webhooks", content=content, headers=headers))

    def webhooks(self, *, limit: int | None = None) -> Iterator[Json]:
        """Yield webhooks, newest first."""
        yield from self._connection.pages("/v1/webhooks", {}, limit=limit, page=100)

    def deliveries(self, webhook_id: str, *, limit: int | None = None) -> Iterator[Json]:
        """Yield a webhook's delivery log, newest first: `{id, object, webhook_id, type, event, state, attempts,
        status_code, error, created_at, next_attempt_at, ended_at}`."""
        yield from self._connection.pages(_webhook_path(webhook_id, "deliveries"), {}, limit=limit, page=100)

    def test_webhook(self, webhook_id: str) -> Json:
        """Send a webhook a `webhook.test` event. Returns the delivery, which is sent later."""
        return as_json(self._connection.send("POST", _webhook_path(webhook_id, "test")))

    def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook and its log. Events that are not sent yet are dropped."""
        self._connection.send("DELETE", _webhook_path(webhook_id))

    # -- cron entries

    def add_cron(self, name: str, schedule: str, spec: Mapping[str, Any], *, timezone: str = "UTC") -> Json:
        """Add a spec that is submitted at the times of a cron expression.

        Returns:
            `{id, object, name, project, schedule, timezone, spec, next_at, last_at, last_job_id, last_error,
            created_at}`.
        """
        body = {"name": name, "schedule": schedule, "timezone": timezone, "spec": spec}
        content, headers = orjson.dumps(body, default=str), {"Content-Type": "application/json"}
        return as_json(self._connection.send("POST", "/v1/crons", content=content, headers=headers))

    def crons(self, *, limit: int | None = None) -> Iterator[Json]:
        """Yield cron entries, newest first."""
        yield from self._connection.pages("/v1/crons", {}, limit=limit, page=100)

    def remove_cron(self, cron_id: str) -> None:
        """Remove a cron entry. Jobs that it submitted are not changed."""
        self._connection.send("DELETE", f"/v1/crons/{segment(cron_id)}")

    def _history(self, path: str, *, after: int, follow: bool) -> Iterator[Json]:
        if not follow:
            yield from self._connection.pages(path, {"after": after}, limit=None, page=1000)
            return
        for message in self._connection.messages(path, {"follow": "true"}, after=after):
            yield message.data


def _job_path(job_id: str, *rest: str) -> str:
    return "/".join(("/v1/jobs", segment(job_id), *rest))


def _webhook_path(webhook_id: str, *rest: str) -> str:
    return "/".join(("/v1/webhooks", segment(webhook_id), *rest))


def _present(**query: Any) -> Json:
    return {name: value for name, value in query.items() if value is not None}
