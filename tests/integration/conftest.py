"""What several of these tests start: a running API, and the data directory of a serving process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.config.settings import Settings
from jobs.db import migrations
from jobs.db.database import Database
from tests.conftest import RedisServer
from tests.support.live_api import LiveApi, live_api


@pytest.fixture
def api(settings: Settings, sqlite_database: Database) -> Iterator[LiveApi]:
    """A running API."""
    with live_api(settings, sqlite_database) as running:
        yield running


@pytest.fixture
def served(tmp_path: Path, redis_server: RedisServer) -> Settings:
    """Settings of a stack in a temporary data directory, its database migrated."""
    (tmp_path / "data").mkdir()
    settings = Settings(data_dir=tmp_path / "data", redis_url=redis_server.url, port=0, input_roots=[Path("/")])
    database = Database(settings.resolved_database_url)
    migrations.upgrade(database)
    database.close()
    return settings
