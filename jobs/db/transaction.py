"""One transaction: the session that runs its statements, the database's clock, and the history that it writes."""

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
    """What `Database.write` and `Database.read` give: a session that also knows the time and the dialect.

    The verbs of the ledger take this and nothing else of the database, so that all that they do stands or falls with
    one commit. A function that only reads rows takes the `Session` that it is.
    """

    def __init__(self, connection: Connection, *, is_sqlite: bool, now: Callable[[], ColumnElement[float]]) -> None:
        """
        Args:
            connection: The connection that runs the statements.
            is_sqlite: Whether the database is SQLite, else PostgreSQL.
            now: The database's clock as an SQL expression.
        """
        super().__init__(connection, expire_on_commit=False, autoflush=True)
        self._is_sqlite = is_sqlite
        self._now = now

    # -- the clock

    def now(self) -> ColumnElement[float]:
        """The database's clock as an SQL expression, in Unix seconds. Hosts' clocks never decide anything."""
        return self._now()

    def time(self) -> float:
        """The database's clock read now, in Unix seconds."""
        return float(self.execute(select(self.now())).scalar_one())

    # -- statements

    def insert(self, table: type[SQLModel]) -> Any:
        """The dialect's INSERT, which knows `on_conflict_do_update` and `on_conflict_do_nothing`."""
        return (sqlite if self._is_sqlite else postgresql).insert(table)

    def changed(self, statement: Update | Delete) -> int:
        """Run a statement and return the number of rows that it changed or deleted."""
        result: Any = self.execute(statement)  # its type names no `rowcount`, which every UPDATE and DELETE has
        return int(result.rowcount)

    def take_turn(self, name: str) -> None:
        """Wait until no other transaction that called this with `name` is open, and keep others waiting until the end.

        Writing transactions of SQLite are alone anyway.
        """
        if not self._is_sqlite:
            self.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name})

    # -- history

    def record(self, job_id: str, name: str, **data: Any) -> None:
        """Write an event of a job or batch, which stands if and only if the change that it reports does.

        The changes so far are flushed before it. Texts are cut to `LONGEST_ENTRY_CHARACTERS`.
        """
        self.flush()
        most = LONGEST_ENTRY_CHARACTERS
        cut = {key: value[:most] if isinstance(value, str) else value for key, value in data.items()}
        self.execute(sql_insert(Event).values(job_id=job_id, at=self.now(), name=name, data=cut))
