"""How the client talks HTTP: errors as the API words them, patience while it is away, streams that resume."""

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
_READ_SECONDS = 60.0  # the event and log streams send a sign of life every five seconds
_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=2.0)
_BLOCK_BYTES = 1 << 20
_REFUSED_FOR_NOW = 429
_AWAY = 503


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
            message: the API's own sentence.
            status: the HTTP status.
            code: the stable word for programs, such as `invalid_spec` or `not_found`.
            param: the field of the spec or request at fault, where one is.
            request_id: finds the request in the server's log.
            retry_after_seconds: when the API says to ask again; 0 where it does not say.
        """
        super().__init__(message, param=param)
        self.status = status
        self.code = code
        self.http_status = status
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds
        self.retryable = status in (_REFUSED_FOR_NOW, _AWAY)

    @property
    def is_user_error(self) -> bool:
        """Whether the request was at fault (4xx), not the server nor what is in its queue now."""
        return 400 <= self.status < 500 and self.status != _REFUSED_FOR_NOW


class Connection:
    """Requests to one API, with its key. Threads may share it."""

    def __init__(
        self, url: str, api_key: str, *, retry_seconds: float, transport: httpx.BaseTransport | None = None
    ) -> None:
        """
        Args:
            url: such as `http://127.0.0.1:8470`.
            api_key: the bearer key; empty sends none.
            retry_seconds: how long a request that may be sent again is, while the API is away.
            transport: for tests.
        """
        if not _is_http_url(url):
            raise InvalidSpec(f"'{url}' is not a URL such as http://127.0.0.1:8470", param="url")
        if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:  # it would be shown in httpx's error
            raise InvalidSpec("the API key has characters that no key has", param="api_key")
        self.url = url.rstrip("/")
        self.retry_seconds = retry_seconds
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers={"Accept": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
                timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS),
                transport=transport,
                trust_env=False,  # a proxy of the environment must not get between two processes of one machine
            )
        except httpx.InvalidURL as error:
            raise InvalidSpec(f"'{url}' is not a URL such as http://127.0.0.1:8470: {error}", param="url") from error

    def close(self) -> None:
        """Close the sockets."""
        self._http.close()

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Json:
        """The JSON object at `path`, asked for again while the API is away."""
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
        """Send a request and read the whole answer.

        Args:
            method: of HTTP.
            path: from the root, its segments quoted by `segment`.
            query: parameters.
            content: the body.
            form: The fields of a form, which is the body then.
            file: The name and the content of the form's field `file`. Sent once only: its content is used up then.
            headers: more headers.
            accept: error statuses that are answers here.
            retry_seconds: how long to try again while the API is away; more than 0 only where being carried out twice
                does no harm. What was refused for now is tried again in any case, for as long as this client's own.

        Raises:
            ApiError: the API refused.
            ServiceUnavailable: nothing answers.
        """
        patience = _Patience(retry_seconds)
        refused = _Patience(self.retry_seconds if file is None else 0.0)
        files = None if file is None else {"file": (*file, "application/octet-stream")}
        while True:
            try:
                response = self._http.request(
                    method, path, params=query, content=content, data=form, files=files, headers=headers
                )
            except httpx.TransportError as error:
                patience.pause_or_raise(self._unavailable(error), error)
                continue
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self._unavailable(error) from error
            if response.status_code in accept:
                return response
            if response.status_code == _AWAY and patience.pause():
                continue
            if response.status_code == _REFUSED_FOR_NOW and refused.pause(_retry_after(response)):
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
        """The answer to a GET whose body is still to come; a break, or silence, is ServiceUnavailable."""
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
        """Write what lies at `path` to a file, which appears whole or not at all. Returns its size in bytes.

        Raises:
            InvalidOutput: no file can be written there.
        """
        patience = _Patience(self.retry_seconds)
        while True:
            try:
                with self.stream(path, query) as response, write_aside(target) as file:
                    for block in response.iter_bytes(_BLOCK_BYTES):
                        file.write(block)
                    num_bytes = file.tell()
            except (ServiceUnavailable, ApiError) as error:
                if not error.retryable or isinstance(error.__cause__, OSError):  # of this machine's disk
                    raise
                patience.pause_or_raise(error, error.__cause__)
            else:
                return num_bytes

    def messages(
        self, path: str, query: Mapping[str, Any], *, after: int = 0, timeout_seconds: float | None = None
    ) -> Iterator[Message]:
        """Server-sent events until the server says `end`, resumed after the last one seen when the stream breaks.

        Raises:
            TimeoutError: the end has not come in `timeout_seconds`; known a few seconds late at most.
        """
        patience = _Patience(self.retry_seconds)
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        last_id = after
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last_id)}
            left = _READ_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the end has not come in time")
            try:
                with self.stream(path, query, headers, read_seconds=min(left, _READ_SECONDS)) as response:
                    patience = _Patience(self.retry_seconds)
                    for message in read_events(response, deadline=deadline):
                        if message.name == "end":
                            return
                        last_id = max(last_id, message.id)
                        yield message
            except (ServiceUnavailable, ApiError) as error:
                if not error.retryable:
                    raise
                trouble: StokerError = error
            else:
                trouble = ServiceUnavailable(f"the stream from {self.url} ended early: the API is stopping")
            if deadline is None or time.monotonic() < deadline:
                patience.pause_or_raise(trouble, trouble.__cause__)

    def pages(self, path: str, query: Mapping[str, Any], *, limit: int | None, page: int) -> Iterator[Json]:
        """The entries of a paged list, at most `limit`, fetched `page` at a time."""
        left = limit
        cursor = dict(query)
        while left is None or left > 0:
            answer = self.get(path, {**cursor, "limit": page if left is None else min(page, left)})
            yield from answer["data"]
            if not answer["has_more"] or not answer["data"]:
                return
            cursor["after"] = answer["last_id"]
            left = None if left is None else left - len(answer["data"])

    def _unavailable(self, error: Exception) -> ServiceUnavailable:
        reason = str(error).strip() or type(error).__name__
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol | httpx.InvalidURL):
            return ServiceUnavailable(f"no Stoker answers at {self.url} ({reason})")
        return ServiceUnavailable(f"the connection to {self.url} broke off ({reason})")


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0  # reading it checks its range
    except ValueError:  # a bracket that is not closed, a port above 65535
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and port_is_valid and url.isprintable()


class _Patience:
    """Growing pauses between tries, within a time that counts from the first failure."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._give_up_at: float | None = None
        self._num_failures = 0

    def pause(self, least_seconds: float = 0.0) -> bool:
        """Wait before the next try; False, at once, when the time is used up."""
        now = time.monotonic()
        if self._give_up_at is None:
            self._give_up_at = now + self._seconds
        seconds = max(_BACKOFF.delay_seconds(self._num_failures + 1), least_seconds)
        if now + seconds >= self._give_up_at:
            return False
        time.sleep(seconds)  # nothing tells when another machine's server is back
        self._num_failures += 1
        return True

    def pause_or_raise(self, error: StokerError, cause: BaseException | None) -> None:
        """Wait before the next try, or raise `error` when the time is used up."""
        if not self.pause(error.retry_after_seconds if isinstance(error, ApiError) else 0.0):
            raise error from cause


def segment(name: str, *, keep: str = "") -> str:
    """`name` as one segment of a path, so that no `/`, `?` or `..` in it reaches another route."""
    quoted = quote(name, safe=keep)
    return quoted if quoted.strip("./") else quoted.replace(".", "%2E") or "-"


def as_json(response: httpx.Response) -> Json:
    """The answer's JSON object. Raises ApiError where something else than Stoker answered."""
    try:
        document = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise ApiError(f"{response.request.url} answered, but not as Stoker does", status=502, code="not_stoker")
    return document


def _check(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    try:
        error = orjson.loads(response.content)["error"]
        message, code, param = str(error["message"]), str(error["code"]), error.get("param")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        message = f"{response.request.url} answered {response.status_code}, and not as Stoker does"
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
    """The header's whole seconds; its other form, a date, is not read."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0.0
