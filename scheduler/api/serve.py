"""The process that runs the scheduler and serves the API, itself or by processes of its own: `stoker serve`."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue

from jobs.config.locations import Locations
from jobs.config.private_files import make_private
from jobs.config.settings import Settings
from jobs.data.atomic import write_aside
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.errors import InvalidSpec
from jobs.queue import Doorbell, make_app
from scheduler.admin.schema import check_schema
from scheduler.api.api_process import make_server, on_signals, run_process
from scheduler.api.api_processes import ApiProcesses
from scheduler.api.server import ApiServer, bind
from scheduler.control.service import Service

logger = logging.getLogger(__name__)


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
        celery = make_app(settings)
        parts.callback(celery.close)
        api = _api(settings, database, store, parts, on_end=lambda: endings.put("the API ended"))
        parts.callback(api.stop)
        parts.enter_context(on_signals(endings.put))
        parts.enter_context(_running(Service(settings, database, store, celery), on_end=endings.put))
        api.start(is_wanted=endings.empty)
        parts.enter_context(_published(api.url, settings))
        logger.info("serving at %s", api.url)
        ending = endings.get()
        logger.info("stopping: %s", ending)
    return 0 if ending.startswith("SIG") else 1


def _api(
    settings: Settings, database: Database, store: Store, parts: ExitStack, *, on_end: Callable[[], None]
) -> ApiServer | ApiProcesses:
    """The API in this process, or in processes of its own if there are to be several of them."""
    if settings.api_processes > 1:
        return ApiProcesses(settings.host, settings.port, num_processes=settings.api_processes, on_end=on_end)
    doorbell = Doorbell(settings)
    parts.callback(doorbell.close)
    return make_server(settings, database, store, doorbell, bind(settings.host, settings.port), on_end=on_end)


@contextmanager
def _running(service: Service, *, on_end: Callable[[str], None]) -> Iterator[None]:
    """Runs the scheduler in a thread and reports if it ends by itself."""

    def run() -> None:
        try:
            service.run()
        except Exception:
            logger.exception("the scheduler ended with an error")
        finally:
            on_end("the scheduler ended")

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
            f"cannot create the data directory {path.parent}: {error.strerror}", param="data_dir"
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
            logger.info("the url file was removed already")


def main() -> int:
    """Entry point. Returns the exit status: 2 if a setting is invalid."""
    return run_process(run_api_and_scheduler)


if __name__ == "__main__":
    sys.exit(main())
