"""The process that serves the API and runs the scheduler: `stoker serve`, also part of the embedded stack."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue

from pydantic import ValidationError

from jobs.config.locations import Locations
from jobs.config.private_files import make_private
from jobs.config.settings import ApiLimits, Settings
from jobs.data.atomic import write_aside
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import InvalidSpec, StokerError, UserError
from jobs.queue import Doorbell, make_app
from scheduler.admin.schema import check_schema
from scheduler.api.app import create_app
from scheduler.api.protocol import ConnectionLimits, fitting
from scheduler.api.server import ApiServer
from scheduler.control.service import Service

logger = logging.getLogger(__name__)

_REQUEST_GRACE_SECONDS = 3.0  # for running requests at shutdown; clients may repeat what is cut off
_UNREAD_TIMES = 10
"""A response may stay unread this many times longer than a request may be silent: a person may be paging through it."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_api_and_scheduler(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Called from the main thread, which only waits.

    Meanwhile the data directory's `url` file holds the URL. `/healthz` says when the API is ready.

    Returns:
        The exit status: 0 after a signal, 1 if the API or the scheduler ended by itself.

    Raises:
        UserError: A setting is invalid, such as a port in use or a database with an old schema.
        ServiceUnavailable: The database cannot be reached.
    """
    endings: SimpleQueue[str] = SimpleQueue()  # its `put` is safe in a signal handler; an Event's `set` is not
    with ExitStack() as parts:
        database = Database(settings.resolved_database_url)
        parts.callback(database.close)
        check_schema(database)
        make_private(settings)
        store = Store(settings.resolved_store_url)
        doorbell = Doorbell(settings)
        parts.callback(doorbell.close)
        celery = make_app(settings)
        parts.callback(celery.close)
        api = create_app(settings, database, store, doorbell)
        server = ApiServer(
            api,
            host=settings.host,
            port=settings.port,
            grace_seconds=min(_REQUEST_GRACE_SECONDS, settings.grace_seconds),
            limits=connection_limits(settings),
            on_end=lambda: endings.put("the API"),
        )
        parts.callback(server.stop)
        parts.enter_context(_on_signals(lambda name: endings.put(name)))
        parts.enter_context(_running(Service(settings, database, store, celery), on_end=endings.put))
        server.start()
        parts.enter_context(_published(server.url, settings))
        logger.info("serving at %s", server.url)
        ending = endings.get()
        logger.info("ending: %s", ending)
    return 0 if ending.startswith("SIG") else 1


def connection_limits(limits: ApiLimits) -> ConnectionLimits:
    """The limits of the API's connections."""
    return ConnectionLimits(
        most_connections=fitting(limits.connections),
        head_seconds=limits.request_seconds,
        unread_seconds=_UNREAD_TIMES * limits.client_idle_seconds,
    )


@contextmanager
def _running(service: Service, *, on_end: Callable[[str], None]) -> Iterator[None]:
    """Runs the scheduler in a thread and reports if it ends by itself."""

    def run() -> None:
        try:
            service.run()
        except Exception:
            logger.exception("the scheduler ended by an error")
        finally:
            on_end("the scheduler")

    thread = threading.Thread(target=run, name="scheduler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        service.stop()
        thread.join()


@contextmanager
def _published(url: str, locations: Locations) -> Iterator[None]:
    """Write the URL into the data directory's `url` file, for clients on this machine."""
    path = locations.url_path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSpec(
            f"the data directory {path.parent} cannot be made: {error.strerror}", param="data_dir"
        ) from error
    with write_aside(path) as file:
        file.write(f"{url}\n".encode())
    try:
        yield
    finally:
        try:
            if path.read_text().strip() == url:  # otherwise another server has replaced it by now
                path.unlink()
        except FileNotFoundError:
            logger.info("the url file was gone already")


@contextmanager
def _on_signals(tell: Callable[[str], None]) -> Iterator[None]:
    before = {number: signal.signal(number, lambda number, _: tell(signal.Signals(number).name)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    """Entry point. Returns the exit status: 2 if a setting is invalid."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each URL, and a webhook's URL may contain a secret
    try:
        return run_api_and_scheduler(Settings())
    except ValidationError as error:
        first = error.errors()[0]
        logger.error("setting %s: %s", ".".join(str(part) for part in first["loc"]), first["msg"])
        return 2
    except StokerError as error:
        logger.error("%s", error.message)
        return 2 if isinstance(error, UserError) else 1


if __name__ == "__main__":
    sys.exit(main())
