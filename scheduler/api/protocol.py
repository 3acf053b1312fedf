"""Limits of HTTP connections: their number, the time of a request's headers, and the time of an unread response.

Uses private names of uvicorn's h11 protocol; `tests/integration/test_api_connections.py` is the contract test.
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
"""Most file descriptors of one connection: its socket, an object of the store, a database connection."""
_SPARE_DESCRIPTORS = 128
_LOG_SECONDS = 10.0  # between two log lines about refused connections
_BUSY = orjson.dumps(
    {
        "error": {
            "message": "the API has too many connections; try again",
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
    """Number of connections, and how long one may be idle."""

    most_connections: int
    """Most concurrent connections; further ones get a 503."""
    head_seconds: float
    """Most seconds from the first byte of a request, or from connecting, to the end of the request's headers."""
    unread_seconds: float
    """Most seconds in which a client reads nothing of its response."""


def protocol_class(limits: ConnectionLimits) -> type[H11Protocol]:
    """A uvicorn protocol class with these limits."""
    return type("LimitedProtocol", (_GuardedProtocol,), {"limits": limits})


def fitting(most_connections: int) -> int:
    """Raise the soft limit of open files to the hard one, and return how many connections fit into it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            logger.info("cannot raise the limit of open files above %d: %s", soft, error)
    if soft == resource.RLIM_INFINITY:
        return most_connections
    return max(1, min(most_connections, (soft - _SPARE_DESCRIPTORS) // _DESCRIPTORS_OF_ONE))


class _GuardedProtocol(H11Protocol):
    """One connection."""

    limits: ConnectionLimits
    _logged_at = 0.0
    _num_refused = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_refused = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it if the limit is reached."""
        if len(self.connections) >= self.limits.most_connections:
            self._is_refused = True
            self.transport = transport
            self._log_refused()
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
        """Process bytes, and watch for the end of the request's headers."""
        if self._is_refused:
            return
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Continue with the next request, whose first bytes may have arrived already."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._watch_head()

    def pause_writing(self) -> None:
        """Start the timer of a client that reads more slowly than we write."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(
            self.limits.unread_seconds, self._close_because, "did not read the response"
        )

    def resume_writing(self) -> None:
        """Stop that timer when the client reads again."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _watch_head(self) -> None:
        """Limit the time of a request's headers, however slowly their bytes arrive."""
        awaits_head = self.cycle is None or self.cycle.response_complete
        if awaits_head and self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(
                self.limits.head_seconds, self._close_because, "did not finish its request headers in time"
            )
        elif not awaits_head and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_because(self, what: str) -> None:
        logger.info("closed the connection of %s, which %s", self.client, what)
        self.transport.abort()

    def _log_refused(self) -> None:
        """Log at most one line per interval, so that a flood of connections does not flood the log."""
        kind = type(self)
        kind._num_refused += 1
        now = time.monotonic()
        if now - kind._logged_at >= _LOG_SECONDS:
            logger.warning("refused %d connections, since %d are open", kind._num_refused, len(self.connections))
            kind._logged_at, kind._num_refused = now, 0
