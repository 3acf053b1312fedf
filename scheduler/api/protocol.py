"""HTTP connections that do not wait for ever: a bound on their number, on a request's head and on an unread answer.

Builds on the inner names of uvicorn's h11 protocol; `tests/integration/test_api_connections.py` holds it to them.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from dataclasses import dataclass
from typing import Any

import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

_DESCRIPTORS_OF_ONE = 3
"""File descriptors of a connection at most: its socket, an object of the store, a connection to the database."""
_SPARE_DESCRIPTORS = 128
_SAY_SECONDS = 10.0  # between two lines of the log about connections that were refused
_BUSY = orjson.dumps(
    {
        "error": {
            "message": "the API has as many connections as it may; try again",
            "type": "server_error",
            "param": None,
            "code": "service_unavailable",
        }
    }
)
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_BUSY), _BUSY)
)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections there are, and how long one may do nothing."""

    most_connections: int
    """Connections at once; further ones are answered 503."""
    head_seconds: float
    """Time from the first byte of a request, or the start of a connection, to the end of the request's headers."""
    unread_seconds: float
    """Time in which a client may take nothing of an answer."""


def protocol_class(limits: ConnectionLimits) -> type[H11Protocol]:
    """uvicorn's protocol within these limits."""
    return type("LimitedProtocol", (_GuardedProtocol,), {"limits": limits})


def fitting(most_connections: int) -> int:
    """The connections that the process has file descriptors for; raises their soft limit to the hard one first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            logger.info("the limit of open files stays at %d: %s", soft, error)
    if soft == resource.RLIM_INFINITY:
        return most_connections
    return max(1, min(most_connections, (soft - _SPARE_DESCRIPTORS) // _DESCRIPTORS_OF_ONE))


class _GuardedProtocol(H11Protocol):
    """One connection."""

    limits: ConnectionLimits
    _said_at = 0.0
    _num_refused = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_refused = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it where there are enough."""
        if len(self.connections) >= self.limits.most_connections:
            self._is_refused = True
            self.transport = transport
            self._say_refused()
            transport.write(_REFUSAL)
            transport.close()
            return
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection and its timers."""
        for timer in (self._head_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        if not self._is_refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and watch for the end of a request's head."""
        if self._is_refused:
            return
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Go on with the next request, the beginning of which may be here already."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._watch_head()

    def pause_writing(self) -> None:
        """Begin to wait for a client that reads more slowly than its answer is made."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self.limits.unread_seconds, self._cut, "did not read its answer")

    def resume_writing(self) -> None:
        """End the wait for a client that reads again."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _watch_head(self) -> None:
        """Give the head of a request so much time, and no more, however slowly its bytes trickle in."""
        awaits_head = self.cycle is None or self.cycle.response_complete
        if awaits_head and self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.limits.head_seconds, self._cut, "did not end its request")
        elif not awaits_head and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cut(self, what: str) -> None:
        logger.info("the connection of %s was cut: it %s", self.client, what)
        self.transport.abort()

    def _say_refused(self) -> None:
        """One line now and then, so that a flood of connections does not become a flood of lines."""
        kind = type(self)
        kind._num_refused += 1
        now = time.monotonic()
        if now - kind._said_at >= _SAY_SECONDS:
            logger.warning("%d connections were refused: there are %d", kind._num_refused, len(self.connections))
            kind._said_at, kind._num_refused = now, 0
