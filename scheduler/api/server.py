"""The HTTP server: a listening socket, and one thread with uvicorn's loop. Open streams do not delay its shutdown."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from jobs.errors import InvalidSpec, ServiceUnavailable
from scheduler.api.protocol import ConnectionLimits, protocol_class

logger = logging.getLogger(__name__)

_BACKLOG = 512
_KEEP_ALIVE_SECONDS = 30


class ApiServer:
    """Serves an app in its own thread, so that the main thread can wait for signals."""

    def __init__(
        self,
        app: FastAPI,
        listener: socket.socket,
        *,
        grace_seconds: float,
        limits: ConnectionLimits,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            app: The application made by `create_app`.
            listener: A listening socket from `bind`; closed at `stop`.
            grace_seconds: Time that running requests have at shutdown.
            limits: Limits of the connections.
            on_end: Called in the server's thread when it has stopped for any reason.
        """
        self._app = app
        self._on_end = on_end
        self._socket = listener
        self.url = url_of(listener)
        """The URL of the server on this machine."""
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            http=protocol_class(limits),
            loop="asyncio",
            ws="none",
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(grace_seconds)),
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)

    def start(self, *, is_wanted: Callable[[], bool] = lambda: True) -> None:  # noqa: ARG002 - see `ApiProcesses`
        """Start, and wait until the server accepts requests. This takes no longer than a moment.

        Raises:
            ServiceUnavailable: The server ended while starting; the log has the reason.
        """
        self._thread.start()
        self._server.settled.wait()
        if not self._server.started:
            raise ServiceUnavailable("the API could not start; see the log")

    def stop(self) -> None:
        """Accept no more requests, end open streams, let running requests finish, and wait for the end."""
        self._app.state.context.looks.close()
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()

    @property
    def is_running(self) -> bool:
        """Whether the server still runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except Exception:
            logger.exception("the API ended with an error")
        finally:
            self._server.settled.set()
            self._on_end()


class _Server(uvicorn.Server):
    """uvicorn's server with an event that is set once it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()
        """Set once the server has started or failed to start."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets=sockets)
        self.settled.set()


def bind(host: str, port: int, *, is_shared: bool = False, listens: bool = True) -> socket.socket:
    """Return a socket that is bound to an address.

    Args:
        port: Port to bind; 0 takes a free one.
        is_shared: Whether other processes of this user may bind the port in the same way. The kernel then divides the
            connections evenly among the sockets that listen.
        listens: Whether the socket listens, or only reserves the port.

    Raises:
        InvalidSpec: The address cannot be bound; the message says what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidSpec(f"host '{host}' is not an address of this machine", param="host") from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that a restart need not wait for old ones
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
        if listens:
            bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        reason = (error.strerror or str(error)).lower()
        raise InvalidSpec(
            f"cannot listen on port {port} of {host}: {reason}; choose another port with --port", param="port"
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """The URL of a bound socket on this machine."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
