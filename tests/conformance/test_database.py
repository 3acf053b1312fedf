"""A database's connections: what is closed leaves none open, whoever still uses it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, text

from jobs.db.database import Database


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "after"])
def test_a_connection_in_use_is_closed_as_soon_as_it_comes_back(database_url: str, is_late: bool) -> None:
    database = Database(database_url)
    opened: list[Any] = []
    closed: list[Any] = []
    event.listen(database.engine, "connect", lambda connection, _: opened.append(connection))
    event.listen(database.engine, "close", lambda connection, _: closed.append(connection))
    if is_late:
        database.close()
    with database.read() as session:
        session.execute(text("SELECT 1"))
        database.close()
        assert len(opened) == 1
        assert closed == []
    assert closed == opened
