"""What several of these tests start: a running API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs.config.settings import Settings
from jobs.db.database import Database
from tests.support.live_api import LiveApi, live_api


@pytest.fixture
def api(settings: Settings, sqlite_database: Database) -> Iterator[LiveApi]:
    """A running API."""
    with live_api(settings, sqlite_database) as running:
        yield running
