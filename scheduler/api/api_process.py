"""A process that only serves the API, on a port that it shares with others of its kind."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue

from pydantic import ValidationError

from jobs.config.settings import ApiLimits, Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import StokerError, UserError
from jobs.queue import Doorbell
from scheduler.api.app import create_app
from scheduler.api.protocol import ConnectionLimits, fitting
from scheduler.api.server import ApiServer, bind

logger = logging.getLogger(__name__)

REQUEST_GRACE_SECONDS = 3.0
"""Time for running requests at shutdown; clients may repeat what is cut off."""
INVALID_STATUS = 2
"""Exit status of a process that a user's mistake keeps from running, such as an invalid setting."""
_UNREAD_TIMES = 10
"""A response may stay unread this many times longer than a request may be silent: a person may be paging through it."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve_until_signal(settings: Settings, port: int) -> int:
    """Serve the API until SIGTERM or SIGINT. Called from the main thread, which only waits.

    Args:
        port: The port, which is shared.

    Returns:
        The exit status: 0 after a signal, 1 if the API ended by itself.
    """
    endings: SimpleQueue[str] = SimpleQueue()
    with ExitStack() as parts:
        database = Database(settings.resolved_database_url)
        parts.callback(database.close)
        doorbell = Doorbell(settings)
        parts.callback(doorbell.close)
        store = Store(settings.resolved_store_url)
        listener = bind(settings.host, port, is_shared=True)
        server = make_server(settings, database, store, doorbell, listener, on_end=lambda: endings.put("the API ended"))
        parts.callback(server.stop)
        parts.enter_context(on_signals(endings.put))
        server.start()
        ending = endings.get()
    return 0 if ending.startswith("SIG") else 1


def make_server(
    settings: Settings,
    database: Database,
    store: Store,
    doorbell: Doorbell,
    listener: socket.socket,
    *,
    on_end: Callable[[], None],
) -> ApiServer:
    """The server of the API with the limits of the settings, not started yet.

    Args:
        listener: The bound socket; the server closes it.
        on_end: Called when the server has stopped for any reason.
    """
    return ApiServer(
        create_app(settings, database, store, doorbell),
        listener,
        grace_seconds=min(REQUEST_GRACE_SECONDS, settings.grace_seconds),
        limits=connection_limits(settings),
        on_end=on_end,
    )


def connection_limits(limits: ApiLimits) -> ConnectionLimits:
    """The limits of the API's connections."""
    return ConnectionLimits(
        most_connections=fitting(limits.connections),
        head_seconds=limits.request_seconds,
        unread_seconds=_UNREAD_TIMES * limits.client_idle_seconds,
    )


@contextmanager
def on_signals(report: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, report the name of each SIGTERM and SIGINT instead of ending the process.

    Args:
        report: Called in the signal handler, so it must take no lock.
    """
    before = {
        number: signal.signal(number, lambda number, _: report(signal.Signals(number).name)) for number in _SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_process(run: Callable[[Settings], int]) -> int:
    """Run a serving process with the settings of its environment, and log why it cannot run in one sentence.

    Returns:
        The exit status: `INVALID_STATUS` if a setting is invalid.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each URL, and a webhook's URL may contain a secret
    try:
        return run(Settings())
    except ValidationError as error:
        first = error.errors()[0]
        logger.error("setting %s: %s", ".".join(str(part) for part in first["loc"]), first["msg"])
        return INVALID_STATUS
    except StokerError as error:
        logger.error("%s", error.message)
        return INVALID_STATUS if isinstance(error, UserError) else 1


def main() -> int:
    """Entry point. The only argument is the port."""
    port = int(sys.argv[1])
    return run_process(lambda settings: serve_until_signal(settings, port))


if __name__ == "__main__":
    sys.exit(main())
