"""A database transaction: a session with the database's clock and with a function that records events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Delete, Update, select, text
from sqlalchemy import insert as sql_insert
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel

from jobs.db.tables import Event
from jobs.specs.bounds import LONGEST_ENTRY_CHARACTERS


class Transaction(Session):
    """The session that `Database.write` and `Database.read` return; it also has the clock and the dialect.

    The functions of the ledger that change something receive only this, so that all their changes are committed or
    rolled back together. A function that only reads rows declares a plain `Session`.
    """

    def __init__(self, connection: Connection, *, is_sqlite: bool, now: Callable[[], ColumnElement[float]]) -> None:
        """
        Args:
            connection: The connection that runs the statements.
            is_sqlite: Whether the database is SQLite; otherwise it is PostgreSQL.
            now: The database's clock as an SQL expression.
        """
        super().__init__(connection, expire_on_commit=False, autoflush=True)
        self._is_sqlite = is_sqlite
        self._now = now

    # -- the clock

    def now(self) -> ColumnElement[float]:
        """The database's clock as an SQL expression, in Unix seconds. No decision uses the clock of a host."""
        return self._now()

    def time(self) -> float:
        """The current time of the database's clock, in Unix seconds."""
        return float(self.execute(select(self.now())).scalar_one())

    # -- statements

    def insert(self, table: type[SQLModel]) -> Any:
        """The dialect's INSERT, which supports `on_conflict_do_update` and `on_conflict_do_nothing`."""
        return (sqlite if self._is_sqlite else postgresql).insert(table)

    def changed(self, statement: Update | Delete) -> int:
        """Run a statement and return the number of rows that it changed or deleted."""
        result: Any = self.execute(statement)  # the declared type lacks `rowcount`, which every UPDATE and DELETE has
        return int(result.rowcount)

    def take_turn(self, name: str) -> None:
        """Take an exclusive lock called `name` until the end of this transaction; wait for it if another holds it.

        Does nothing on SQLite, where only one transaction writes at a time.
        """
        if not self._is_sqlite:
            self.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name})

    # -- history

    def record(self, job_id: str, name: str, **data: Any) -> None:
        """Record an event of a job or batch. It is committed together with the change that it reports.

        Earlier changes are flushed first. Texts are cut to `LONGEST_ENTRY_CHARACTERS`.
        """
        self.flush()
        most = LONGEST_ENTRY_CHARACTERS
        cut = {key: value[:most] if isinstance(value, str) else value for key, value in data.items()}
        self.execute(sql_insert(Event).values(job_id=job_id, at=self.now(), name=name, data=cut))
