"""The process of `stoker serve`, as in production, on a data directory of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from jobs import process
from jobs.config.settings import Settings
from jobs.db.database import Database
from scheduler.admin.keys import ensure_local_key
from scheduler.client.http_client import StokerClient
from tests.conftest import wait_until

_REPOSITORY = Path(__file__).parents[2]


def environment(settings: Settings, **more: str) -> Mapping[str, str]:
    """What the process reads its settings from."""
    ours = {
        "STOKER_DATA_DIR": str(settings.data_dir),
        "STOKER_REDIS_URL": settings.redis_url,
        "STOKER_PORT": str(settings.port),
        "STOKER_API_PROCESSES": str(settings.api_processes),
        "STOKER_INPUT_ROOTS": '["/"]',
        "PYTHONPATH": str(_REPOSITORY),
    }
    return {**os.environ, **ours, **more}


@contextmanager
def serving(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, ended with the block."""
    with log.open("ab") as output:
        child = process.spawn(
            [sys.executable, "-m", "scheduler.api.serve"], env=environment(settings), stdout=output, stderr=output
        )
    try:
        wait_until(lambda: settings.url_path.exists() or child.poll() is not None, "the API writes its URL")
        assert child.poll() is None, log.read_text()
        yield child
    finally:
        process.end(child, 60.0)


def client_of(settings: Settings) -> StokerClient:
    """A client with the stack's local key."""
    database = Database(settings.resolved_database_url)
    key = ensure_local_key(settings, database)
    database.close()
    return StokerClient(settings.url_path.read_text().strip(), key)
