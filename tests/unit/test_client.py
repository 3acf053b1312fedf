"""The client alone: its requests, how it reads responses, and how long it retries an API that is away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.errors import InvalidOutput, InvalidSpec, NotFound, ServiceUnavailable
from jobs.retries import Backoff
from scheduler.cli.command_line import exit_code_of
from scheduler.client import connection
from scheduler.client.connection import segment
from scheduler.client.event_stream import read_events, read_lines
from scheduler.client.http_client import ApiError, StokerClient

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_BACKOFF", Backoff(first_seconds=0.001, longest_seconds=2.0))


def client_over(handler: Handler, *, retry_seconds: float = 5.0) -> StokerClient:
    """A client whose requests `handler` answers."""
    return StokerClient(
        "http://stoker.test/", "the-key", retry_seconds=retry_seconds, transport=httpx.MockTransport(handler)
    )


class Flaky:
    """Fails a number of times, then answers."""

    def __init__(self, failures: int, failure: Exception | httpx.Response, answer: Any = None) -> None:
        self.requests: list[httpx.Request] = []
        self._failures, self._failure, self._answer = failures, failure, answer or {"id": "job_1"}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if len(self.requests) <= self._failures:
            if isinstance(self._failure, Exception):
                raise self._failure
            return self._failure
        return httpx.Response(200, json=self._answer)


_REFUSED = httpx.ConnectError("connection refused")
_AWAY = httpx.Response(
    503, json={"error": {"message": "the database is away", "type": "server_error", "param": None, "code": "x"}}
)


@pytest.mark.parametrize("failure", [_REFUSED, httpx.ReadError("reset"), httpx.ReadTimeout("slow"), _AWAY])
def test_reading_and_submitting_are_tried_again(failure: Exception | httpx.Response) -> None:
    reading = Flaky(2, failure)
    assert client_over(reading).job("job_1") == {"id": "job_1"}
    submitting = Flaky(2, failure)
    assert client_over(submitting).submit({"task": "x"}) == {"id": "job_1"}
    keys = {request.headers["idempotency-key"] for request in submitting.requests}
    assert len(submitting.requests) == 3
    assert len(keys) == 1


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_what_must_not_happen_twice_is_sent_once(verb: str) -> None:
    flaky = Flaky(1, httpx.ReadError("reset"))
    with pytest.raises(ServiceUnavailable, match="lost the connection"):
        getattr(client_over(flaky), verb)("job_1")
    assert len(flaky.requests) == 1


def test_nothing_answering_is_one_sentence_with_the_url() -> None:
    with pytest.raises(ServiceUnavailable, match=r"no Stoker API responds at http://stoker\.test: connection refused"):
        client_over(Flaky(10**6, _REFUSED), retry_seconds=0.01).job("job_1")
    flaky = Flaky(10**6, _REFUSED)
    with pytest.raises(ServiceUnavailable):
        client_over(flaky).health()
    assert len(flaky.requests) == 1  # sent once: the caller wants to know now


@pytest.mark.parametrize(
    "url", ["nonsense", "http://", "ftp://x", "http://x:99999999", "http://[::", "", "http://\x00"]
)
def test_a_url_that_is_none_is_one_sentence(url: str) -> None:
    with pytest.raises(InvalidSpec, match="is not a URL"), StokerClient(url, "key", retry_seconds=0) as client:
        client.health()


@pytest.mark.parametrize("key", ["a\nb", "é", "two words"])
def test_a_key_that_is_none_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        StokerClient("http://127.0.0.1:1", key)
    assert key not in caught.value.message


def test_a_refusal_carries_the_whole_api_error() -> None:
    error = {"message": "task: unknown", "type": "invalid_request_error", "param": "task", "code": "invalid_spec"}
    answer = httpx.Response(400, json={"error": error}, headers={"x-request-id": "req_1"})
    with pytest.raises(ApiError) as refused:
        client_over(lambda _: answer).submit({})
    error = refused.value
    assert (error.status, error.code, error.message, error.param) == (400, "invalid_spec", "task: unknown", "task")
    assert (error.request_id, error.is_user_error, error.retryable, str(error)) == (
        "req_1",
        True,
        False,
        "task: unknown",
    )


def refusing(number: int, seconds: str, seen: list[httpx.Request]) -> Callable[[httpx.Request], httpx.Response]:
    """An API that refuses the first requests temporarily."""

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) > number:
            return httpx.Response(200, json={"id": "x", "data": [], "has_more": False})
        error = {"message": "the queue is full", "type": "rate_limit_exceeded", "param": None, "code": "x_exceeded"}
        return httpx.Response(429, json={"error": error}, headers={"retry-after": seconds})

    return answer


def test_what_is_refused_for_now_is_sent_again(tmp_path: Path) -> None:
    asks: list[Callable[[StokerClient], object]] = [
        lambda client: client.cancel("j"),
        lambda client: client.submit({}),
        lambda client: list(client.jobs()),
        lambda client: client.results("j", tmp_path / "out"),
    ]
    for ask in asks:
        seen: list[httpx.Request] = []
        ask(client_over(refusing(1, "0", seen), retry_seconds=5))
        assert len(seen) == 2
        assert seen[0].content == seen[1].content


def test_a_retry_after_longer_than_the_clients_limit_raises_at_once(tmp_path: Path) -> None:
    seen: list[httpx.Request] = []
    with pytest.raises(ApiError, match="the queue is full") as refused:
        client_over(refusing(9, "30", seen), retry_seconds=5).submit({})
    assert len(seen) == 1
    error = refused.value
    assert (error.status, error.code, error.retry_after_seconds) == (429, "x_exceeded", 30.0)
    assert (error.retryable, error.is_user_error, exit_code_of(error)) == (True, False, 1)


def test_an_upload_is_sent_once(tmp_path: Path) -> None:
    """Its bytes have gone with the first try."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x")
    seen: list[httpx.Request] = []
    with pytest.raises(ApiError, match="the queue is full"):
        client_over(refusing(1, "0", seen), retry_seconds=5).upload(path)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>It works!</html>"),
        httpx.Response(200, json=[]),
        httpx.Response(404, text="nginx"),
        httpx.Response(500, json={"detail": "x"}),
        httpx.Response(502, json=["x"]),
        httpx.Response(200, json={"status": "ok"}),
    ],
)
def test_another_server_at_the_url_is_named_as_such(answer: httpx.Response) -> None:
    with pytest.raises(ApiError) as refused:
        client_over(lambda _: answer).health()
    assert refused.value.code == "not_stoker"


def test_requests_carry_the_key_and_stay_on_their_route() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"data": [], "has_more": False})

    client = client_over(answer)
    for job_id in ("a/b", "..", ".", "a?b=c", "a#b", "", "a%2fb", "ü", "../../v1/slots"):
        client.job(job_id)
        raw = seen[-1].url.raw_path.decode()
        assert raw.startswith("/v1/jobs/"), raw
        assert raw.count("/") == 3, raw
        assert "?" not in raw
    assert all(request.headers["authorization"] == "Bearer the-key" for request in seen)


def test_a_segment_escapes_all_but_the_given_characters() -> None:
    assert segment("folder/results.parquet", keep="/") == "folder/results.parquet"
    assert segment("a b/c") == "a%20b%2Fc"
    assert segment("..") == "%2E%2E"


def test_lists_are_fetched_page_by_page_up_to_the_limit() -> None:
    requests: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        query = dict(request.url.params)
        requests.append(query)
        start, limit = int(query.get("after", -1)) + 1, int(query["limit"])
        data = [{"id": number} for number in range(start, min(start + limit, 250))]
        return httpx.Response(
            200, json={"object": "list", "data": data, "last_id": data[-1]["id"], "has_more": start + limit < 250}
        )

    assert [job["id"] for job in client_over(answer).jobs(state="queued")] == list(range(250))
    assert [query["limit"] for query in requests] == ["100", "100", "100"]
    assert all(query["state"] == "queued" for query in requests)
    assert len(list(client_over(answer).jobs(limit=130))) == 130
    assert requests[-1]["limit"] == "30"
    assert list(client_over(answer).jobs(limit=0)) == []


class Stream(httpx.SyncByteStream):
    """A body that comes in blocks and may break off."""

    def __init__(self, *blocks: bytes | Exception) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            if isinstance(block, Exception):
                raise block
            yield block


def event(number: int, state: str = "running") -> bytes:
    """One message as the API writes it."""
    return b"id: %d\nevent: job.%b\ndata: %b\n\n" % (number, state.encode(), json.dumps({"id": number}).encode())


def test_a_stream_that_ends_without_its_end_event_is_resumed() -> None:
    bodies = iter(
        [
            (event(1), event(2)[:-5], httpx.ReadError("reset")),
            (b": keep-alive\n\n", event(2), event(3)),  # ended in order, but without saying `end`
            (event(4), b"event: end\ndata: {}\n\n"),
        ]
    )
    requests: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request.headers["last-event-id"])
        return event_stream(*next(bodies))

    assert [entry["id"] for entry in client_over(answer).events("job_1")] == [1, 2, 3, 4]
    assert requests == ["0", "1", "3"]


def test_a_stream_gives_up_after_its_limit_or_at_a_refusal() -> None:
    with pytest.raises(ServiceUnavailable, match="no Stoker API responds"):
        list(client_over(Flaky(10**6, _REFUSED), retry_seconds=0.05).events("job_1"))
    error = {"error": {"message": "there is no job", "type": "t", "param": None, "code": "not_found"}}
    flaky = Flaky(10**6, httpx.Response(404, json=error))
    with pytest.raises(ApiError, match="no job"):
        list(client_over(flaky).events("job_1"))
    assert len(flaky.requests) == 1


def test_waiting_ends_with_the_terminal_state_or_the_time() -> None:
    jobs = [{"id": "job_1", "state": state} for state in ("queued", "running", "completed")]
    messages = [b"event: progress\ndata: %b\n\n" % json.dumps(job).encode() for job in jobs]
    seen: list[str] = []
    whole = event_stream(*messages, b"event: end\ndata: {}\n\n")
    ended = client_over(lambda _: whole).wait("job_1", lambda job: seen.append(job["state"]))
    assert ended == jobs[-1]
    assert seen == ["queued", "running", "completed"]

    def silent(_: httpx.Request) -> httpx.Response:
        return event_stream(messages[0])

    with pytest.raises(TimeoutError):
        client_over(silent).wait("job_1", timeout_seconds=0.05)


def test_a_download_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("what was there before")
    broken = Stream(b"half", httpx.RemoteProtocolError("peer closed connection"))
    with pytest.raises(ServiceUnavailable, match="lost the connection"):
        client_over(lambda _: httpx.Response(200, stream=broken), retry_seconds=0).results("job_1", target)
    assert target.read_text() == "what was there before"
    bodies = iter([broken, Stream(b"the ", b"whole")])
    assert client_over(lambda _: httpx.Response(200, stream=next(bodies))).results("job_1", target) == 9
    assert target.read_text() == "the whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    with pytest.raises(InvalidOutput):
        client_over(lambda _: httpx.Response(200, stream=Stream(b"x"))).results("job_1", tmp_path / "no" / "out")


def test_an_upload_states_its_length_and_sends_the_purpose_first(tmp_path: Path) -> None:
    path = tmp_path / 'a"b\n.jsonl'
    path.write_bytes(b"content")
    seen: list[tuple[int, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((int(request.headers["content-length"]), request.read()))
        return httpx.Response(200, json={"id": "file_1"})

    client_over(answer).upload(path, purpose="batch")
    length, body = seen[0]
    assert length == len(body)
    assert 0 < body.index(b"batch") < body.index(b"content")
    assert b'filename="a%22b%0A.jsonl"' in body
    with pytest.raises(NotFound, match="no file"):
        client_over(answer).upload(tmp_path)


def test_lines_are_cut_at_newlines_only() -> None:
    """A text may hold U+2028, and a line may come in several blocks."""
    text = '{"a":"x\u2028y\\r"}'.encode()
    blocks = [text[:3], text[3:] + b"\n\n", b"la", b"st"]
    answer = httpx.Response(200, stream=Stream(*blocks))
    assert list(read_lines(answer)) == [text, b"", b"last"]


def event_stream(*blocks: bytes | Exception) -> httpx.Response:
    """An answer of server-sent events."""
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Stream(*blocks))


def test_events_without_data_are_signs_of_life_only() -> None:
    text = 'retry: 1000\n\n: keep-alive\n\nid: 7\nevent: log\ndata: {"line": "x: y\u2028z"}\n\n'.encode()
    (message,) = read_events(event_stream(text[:40], text[40:]))
    assert (message.id, message.name, message.data) == (7, "log", {"line": "x: y\u2028z"})


def test_signs_of_life_do_not_put_off_a_deadline() -> None:
    with pytest.raises(TimeoutError):
        list(read_events(event_stream(b": keep-alive\n\n"), deadline=0.0))


class Receiving(httpx.BaseTransport):
    """Takes a request's body block by block while the file that is sent grows."""

    def __init__(self, path: Path, progress: list[int]) -> None:
        self._path, self._progress = path, progress
        self.read_ahead: list[int] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer when all has come."""
        assert isinstance(request.stream, httpx.SyncByteStream)
        received = 0
        for block in request.stream:
            if not received:
                self._path.write_bytes(b"a" * (2 << 20))
            received += len(block)
            self.read_ahead.append(max([0, *self._progress]) - received)
        assert received == int(request.headers["content-length"])
        return httpx.Response(200, json={"id": "file_1"})


def test_an_upload_is_streamed_and_ends_at_the_announced_size(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"a" * (1 << 20))
    progress: list[int] = []
    receiving = Receiving(path, progress)
    with StokerClient("http://stoker.test", transport=receiving) as client:
        client.upload(path, on_progress=progress.append)
    assert progress[-1] == 1 << 20
    assert max(receiving.read_ahead) <= 1 << 17
