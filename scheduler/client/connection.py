"""HTTP requests of the client: the API's errors as exceptions, retries during an outage, and streams that resume."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

import httpx
import orjson

from jobs.data.atomic import write_aside
from jobs.errors import InvalidSpec, ServiceUnavailable, StokerError
from jobs.retries import Backoff
from scheduler.client.event_stream import Message, read_events

Json = dict[str, Any]

_CONNECT_SECONDS = 5.0
_READ_SECONDS = 60.0  # the event and log streams send a keep-alive every five seconds
_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=2.0)
_BLOCK_BYTES = 1 << 20
_TOO_MANY_REQUESTS = 429
_UNAVAILABLE = 503


class ApiError(StokerError):
    """The API refused the request."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_seconds: float = 0.0,
    ) -> None:
        """
        Args:
            message: The API's error message.
            status: HTTP status.
            code: Stable error code for programs, such as `invalid_spec` or `not_found`.
            param: Invalid field of the spec or request, if there is one.
            request_id: Id of the request in the server's log.
            retry_after_seconds: Pause that the API asks for before the next try; 0 if it names none.
        """
        super().__init__(message, param=param)
        self.status = status
        self.code = code
        self.http_status = status
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds
        self.retryable = status in (_TOO_MANY_REQUESTS, _UNAVAILABLE)

    @property
    def is_user_error(self) -> bool:
        """Whether the request was invalid (4xx), rather than the server down or its queue full."""
        return 400 <= self.status < 500 and self.status != _TOO_MANY_REQUESTS


class Connection:
    """Requests to one API, with its key. Threads may share it."""

    def __init__(
        self, url: str, api_key: str, *, retry_seconds: float, transport: httpx.BaseTransport | None = None
    ) -> None:
        """
        Args:
            url: URL of the API, such as `http://127.0.0.1:8470`.
            api_key: Bearer key; if it is empty, none is sent.
            retry_seconds: How long a request that is safe to repeat is retried while the API is unavailable.
            transport: Replacement for the network, for tests.
        """
        if not _is_http_url(url):
            raise InvalidSpec(f"'{url}' is not a URL such as http://127.0.0.1:8470", param="url")
        if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:  # httpx would show the key in its error
            raise InvalidSpec("the API key must consist of printable ASCII characters without spaces", param="api_key")
        self.url = url.rstrip("/")
        self.retry_seconds = retry_seconds
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers={"Accept": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
                timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS),
                transport=transport,
                trust_env=False,  # a proxy from the environment must not sit between two processes of one machine
            )
        except httpx.InvalidURL as error:
            raise InvalidSpec(f"'{url}' is not a URL such as http://127.0.0.1:8470: {error}", param="url") from error

    def close(self) -> None:
        """Close the sockets."""
        self._http.close()

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Json:
        """Get the JSON object at `path`; retried while the API is unavailable."""
        return as_json(self.send("GET", path, query=query, retry_seconds=self.retry_seconds))

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        form: Mapping[str, str] | None = None,
        file: tuple[str, IO[bytes]] | None = None,
        headers: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (),
        retry_seconds: float = 0,
    ) -> httpx.Response:
        """Send a request and read the whole response.

        Args:
            method: HTTP method.
            path: Path from the root; its segments are quoted by `segment`.
            query: Query parameters.
            content: Request body.
            form: Fields of a form, which is sent as the body.
            file: Name and content of the form's field `file`. It is sent only once, since sending consumes it.
            headers: Additional headers.
            accept: Error statuses that are returned instead of raised.
            retry_seconds: How long to retry while the API is unavailable; only idempotent requests may set it. What
                was refused for now (429) is always retried, for up to the connection's `retry_seconds`.

        Raises:
            ApiError: The API refused the request.
            ServiceUnavailable: There is no response.
        """
        outage = _RetryTimer(retry_seconds)
        throttled = _RetryTimer(self.retry_seconds if file is None else 0.0)
        files = None if file is None else {"file": (*file, "application/octet-stream")}
        while True:
            try:
                response = self._http.request(
                    method, path, params=query, content=content, data=form, files=files, headers=headers
                )
            except httpx.TransportError as error:
                outage.pause_or_raise(self._unavailable(error), error)
                continue
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self._unavailable(error) from error
            if response.status_code in accept:
                return response
            if response.status_code == _UNAVAILABLE and outage.pause():
                continue
            if response.status_code == _TOO_MANY_REQUESTS and throttled.pause(_retry_after(response)):
                continue
            _check(response)
            return response

    @contextmanager
    def stream(
        self,
        path: str,
        query: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        read_seconds: float = _READ_SECONDS,
    ) -> Iterator[httpx.Response]:
        """Open a GET whose body is streamed. A lost connection or a timeout raises ServiceUnavailable."""
        timeout = httpx.Timeout(read_seconds, connect=_CONNECT_SECONDS)
        try:
            with self._http.stream("GET", path, params=query, headers=headers, timeout=timeout) as response:
                if response.status_code >= 400:
                    response.read()
                    _check(response)
                yield response
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error

    def download(self, path: str, target: Path, query: Mapping[str, Any]) -> int:
        """Download `path` into a file, which appears complete or not at all. Returns its size in bytes.

        Raises:
            InvalidOutput: The file cannot be written.
        """
        outage = _RetryTimer(self.retry_seconds)
        while True:
            try:
                with self.stream(path, query) as response, write_aside(target) as file:
                    for block in response.iter_bytes(_BLOCK_BYTES):
                        file.write(block)
                    num_bytes = file.tell()
            except (ServiceUnavailable, ApiError) as error:
                if not error.retryable or isinstance(error.__cause__, OSError):  # an error of this machine's disk
                    raise
                outage.pause_or_raise(error, error.__cause__)
            else:
                return num_bytes

    def messages(
        self, path: str, query: Mapping[str, Any], *, after: int = 0, timeout_seconds: float | None = None
    ) -> Iterator[Message]:
        """Yield server-sent events until the event `end`. A broken stream is resumed after the last event received.

        Raises:
            TimeoutError: The event `end` did not arrive within `timeout_seconds`; noticed at most a few seconds late.
        """
        outage = _RetryTimer(self.retry_seconds)
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        last_id = after
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last_id)}
            left = _READ_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the stream did not end in time")
            try:
                with self.stream(path, query, headers, read_seconds=min(left, _READ_SECONDS)) as response:
                    outage = _RetryTimer(self.retry_seconds)
                    for message in read_events(response, deadline=deadline):
                        if message.name == "end":
                            return
                        last_id = max(last_id, message.id)
                        yield message
            except (ServiceUnavailable, ApiError) as error:
                if not error.retryable:
                    raise
                failure: StokerError = error
            else:
                failure = ServiceUnavailable(f"the stream from {self.url} ended early, since the API is shutting down")
            if deadline is None or time.monotonic() < deadline:
                outage.pause_or_raise(failure, failure.__cause__)

    def pages(self, path: str, query: Mapping[str, Any], *, limit: int | None, page: int) -> Iterator[Json]:
        """Yield the entries of a paged list, at most `limit`; `page` entries are fetched per request."""
        left = limit
        cursor = dict(query)
        while left is None or left > 0:
            response = self.get(path, {**cursor, "limit": page if left is None else min(page, left)})
            yield from response["data"]
            if not response["has_more"] or not response["data"]:
                return
            cursor["after"] = response["last_id"]
            left = None if left is None else left - len(response["data"])

    def _unavailable(self, error: Exception) -> ServiceUnavailable:
        reason = str(error).strip() or type(error).__name__
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol | httpx.InvalidURL):
            return ServiceUnavailable(f"no Stoker API responds at {self.url}: {reason}")
        return ServiceUnavailable(f"lost the connection to {self.url}: {reason}")


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0  # reading the port checks its range
    except ValueError:  # an unclosed bracket, or a port above 65535
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and port_is_valid and url.isprintable()


class _RetryTimer:
    """Growing pauses between tries, for a limited time from the first failure."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._give_up_at: float | None = None
        self._num_failures = 0

    def pause(self, least_seconds: float = 0.0) -> bool:
        """Wait before the next try. Returns False, without waiting, once the time is used up."""
        now = time.monotonic()
        if self._give_up_at is None:
            self._give_up_at = now + self._seconds
        seconds = max(_BACKOFF.delay_seconds(self._num_failures + 1), least_seconds)
        if now + seconds >= self._give_up_at:
            return False
        time.sleep(seconds)  # there is no signal when a server on another machine is back
        self._num_failures += 1
        return True

    def pause_or_raise(self, error: StokerError, cause: BaseException | None) -> None:
        """Wait before the next try, or raise `error` when the time is used up."""
        if not self.pause(error.retry_after_seconds if isinstance(error, ApiError) else 0.0):
            raise error from cause


def segment(name: str, *, keep: str = "") -> str:
    """Quote `name` as one path segment, so that a `/`, `?` or `..` in it cannot reach another route."""
    quoted = quote(name, safe=keep)
    return quoted if quoted.strip("./") else quoted.replace(".", "%2E") or "-"


def as_json(response: httpx.Response) -> Json:
    """The response's JSON object. Raises ApiError if the server is not Stoker."""
    try:
        document = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise ApiError(
            f"{response.request.url} responded, but not as Stoker does; check the URL", status=502, code="not_stoker"
        )
    return document


def _check(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    try:
        error = orjson.loads(response.content)["error"]
        message, code, param = str(error["message"]), str(error["code"]), error.get("param")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        message = f"{response.request.url} responded with {response.status_code}, but not as Stoker does; check the URL"
        code, param = "not_stoker", None
    request_id = response.headers.get("x-request-id")
    raise ApiError(
        message,
        status=response.status_code,
        code=code,
        param=param,
        request_id=request_id,
        retry_after_seconds=_retry_after(response),
    )


def _retry_after(response: httpx.Response) -> float:
    """Seconds in the Retry-After header. The header's other form, a date, counts as 0."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0
