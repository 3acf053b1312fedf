"""The HTTP server: one socket and one thread with uvicorn's loop. Open streams do not delay its shutdown."""

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
        *,
        host: str,
        port: int,
        grace_seconds: float,
        limits: ConnectionLimits,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Bind the port.

        Args:
            app: The application made by `create_app`.
            host: Address to bind.
            port: Port to bind; 0 takes a free one.
            grace_seconds: Time that running requests have at shutdown.
            limits: Limits of the connections.
            on_end: Called in the server's thread when it has stopped for any reason.

        Raises:
            InvalidSpec: The address cannot be bound; the message says what to do.
        """
        self._app = app
        self._on_end = on_end
        self._socket = _bind(host, port)
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

    @property
    def url(self) -> str:
        """The URL of the server on this machine."""
        host, port = self._socket.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def start(self) -> None:
        """Start, and wait until the server accepts requests.

        Raises:
            ServiceUnavailable: The server ended while starting; the log says why.
        """
        self._thread.start()
        self._server.settled.wait()
        if not self._server.started:
            raise ServiceUnavailable("the API could not start; the log says why")

    def stop(self) -> None:
        """Accept no more requests, end open streams, let running requests finish, and wait for the end."""
        self._app.state.context.closing.close()
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
            logger.exception("the API ended by an error")
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


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidSpec(f"host '{host}' is not an address of this machine", param="host") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # so that a restart need not wait for old connections
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise InvalidSpec(
            f"port {port} on {host} cannot be served ({reason}); choose another with --port", param="port"
        ) from error
    return listener
