"""The API as in production, over a real socket, on the test's own database; and specs for it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db import migrations
from jobs.db.database import Database
from jobs.queue import Doorbell
from scheduler.admin.keys import create_key
from scheduler.api.api_process import connection_limits
from scheduler.api.app import create_app
from scheduler.api.server import ApiServer, bind
from scheduler.client.http_client import StokerClient


@dataclass(frozen=True)
class LiveApi:
    """A running API, a key for it, and clients that use it."""

    url: str
    key: str
    settings: Settings
    database: Database
    store: Store
    client: StokerClient
    http: httpx.Client
    server: ApiServer
    clients: ExitStack
    """The clients that `client_of` made; closed at the end."""

    def client_of(self, project: str) -> httpx.Client:
        """A client with a new key of a project."""
        secret = create_key(self.database, "test", project=project).secret
        return self.clients.enter_context(_client(self.url, secret))

    def send_raw(self, head: str | bytes, body: bytes = b"") -> bytes:
        """Send exactly these bytes, and return the response up to the end of the connection."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        with socket.create_connection((parts.hostname, parts.port or 80), timeout=300) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # rejected before all was sent
                connection.sendall((head if isinstance(head, bytes) else head.encode("latin-1")) + body)
            answer = b""
            with contextlib.suppress(ConnectionResetError, TimeoutError):
                while block := connection.recv(65536):
                    answer += block
        return answer


@contextmanager
def live_api(settings: Settings, database: Database, *, retry_seconds: float = 0.0) -> Iterator[LiveApi]:
    """Serve on a free port inside the block."""
    store = Store(settings.resolved_store_url)
    doorbell = Doorbell(settings)
    server = ApiServer(
        create_app(settings, database, store, doorbell),
        bind("127.0.0.1", 0),
        grace_seconds=2.0,
        limits=connection_limits(settings),
    )
    key = create_key(database, "test").secret
    server.start()
    try:
        with (
            StokerClient(server.url, key, retry_seconds=retry_seconds) as client,
            _client(server.url, key) as http,
            ExitStack() as clients,
        ):
            yield LiveApi(server.url, key, settings, database, store, client, http, server, clients)
    finally:
        server.stop()
        doorbell.close()


def _client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=300, trust_env=False)


@contextmanager
def fresh_api(folder: Path, **options: Any) -> Iterator[LiveApi]:
    """Serve on a free port with a new SQLite database in `folder`, for a module's tests to share."""
    settings = Settings(data_dir=folder / "data", input_roots=[Path("/")], output_roots=[Path("/")], **options)
    settings.data_dir.mkdir()
    database = Database(settings.resolved_database_url)
    migrations.upgrade(database)
    try:
        with live_api(settings, database) as running:
            yield running
    finally:
        database.close()


def spec_document(path: Path | str, **fields: Any) -> dict[str, Any]:
    """A spec with an input file and a model that is never loaded."""
    document = {"task": "fill-mask", "model": "org/model", "input": {"path": str(path), "key": "id"}}
    return {**document, **fields}
