"""A real HTTP server on loopback that records webhook requests and sends the responses that the test sets."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.conftest import wait_until


@dataclass(frozen=True)
class Received:
    """One received request."""

    path: str
    headers: Mapping[str, str]
    """Headers by their names in lower case."""
    body: bytes

    @property
    def delivery_id(self) -> str:
        """Id of the webhook delivery; retries have the same id."""
        return self.headers["webhook-id"]


Answer = int | Callable[[BaseHTTPRequestHandler], None]


class Receiver:
    """Sends the given status codes in order, the last one repeatedly; a callable sends its own response."""

    def __init__(self, *answers: Answer, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None):
        self.received: list[Received] = []
        self.answers = list(answers or (200,))
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append(Received(self.path, headers, body))
                answer = receiver.answers[0] if len(receiver.answers) == 1 else receiver.answers.pop(0)
                if not isinstance(answer, int):
                    answer(self)
                    return
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                """Keep the tests' output clean."""

        self._server = _Server((host, port), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.scheme, self.host, self.port = "http" if tls is None else "https", host, self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"{self.scheme}://{self.host}:{self.port}/hook"

    def wait(self, num_requests: int, seconds: float = 60.0) -> list[Received]:
        """Wait for at least `num_requests` requests, and return all received requests."""
        wait_until(lambda: len(self.received) >= num_requests, f"{num_requests} requests come", seconds)
        return list(self.received)

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, *arguments: Any) -> None:
        """Ignore errors, since some tests close the sender's connection."""


@contextmanager
def receiver(*answers: Answer, **options: Any) -> Iterator[Receiver]:
    """A running receiver inside the block."""
    running = Receiver(*answers, **options)
    try:
        yield running
    finally:
        running.close()
