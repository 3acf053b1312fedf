"""A database transaction: a session with the database's clock and with a function that records events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

    def __init__(
        self,
        connection: Connection,
        *,
        is_sqlite: bool,
        now: Callable[[], ColumnElement[float]],
        read_clock: Callable[[], float] | None = None,
    ) -> None:
        """
        Args:
            connection: The connection that runs the statements.
            is_sqlite: Whether the database is SQLite; otherwise it is PostgreSQL.
            now: The database's clock as an SQL expression.
            read_clock: Returns what `now` would, if that can be known without a statement.
        """
        super().__init__(connection, expire_on_commit=False, autoflush=True)
        self._is_sqlite = is_sqlite
        self._last: list[Callable[[], None]] = []
        self._now, self._read_clock = now, read_clock

    @property
    def is_serial(self) -> bool:
        """Whether no other transaction writes until this one ends, so that what it has read is still true then.

        So is each transaction of `Database.write` on SQLite, and none on PostgreSQL.
        """
        return self._is_sqlite

    # -- the clock

    def now(self) -> ColumnElement[float]:
        """The database's clock as an SQL expression, in Unix seconds. No decision uses the clock of a host."""
        return self._now()

    def time(self) -> float:
        """The current time of the database's clock, in Unix seconds."""
        if self._read_clock is not None:
            return self._read_clock()
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

    def share_turn(self, name: str) -> None:
        """Take a lock called `name` that others may share, but that excludes `take_turn`. A transaction that waits for
        its turn is not overtaken by later ones that only share it.

        Does nothing on SQLite.
        """
        if not self._is_sqlite:
            self.execute(text("SELECT pg_advisory_xact_lock_shared(hashtext(:name))"), {"name": name})

    # -- the end

    def before_commit(self, last: Callable[[], None]) -> None:
        """Call a function just before the commit, so that the rows that it changes are locked after all others."""
        self._last.append(last)

    def commit(self) -> None:
        """Make the last changes, and commit."""
        self.flush()
        while self._last:
            self._last.pop(0)()
        super().commit()

    # -- history

    def record(self, job_id: str, name: str, **data: Any) -> None:
        """Record an event of a job or batch. It is committed together with the change that it reports.

        Earlier changes are flushed first. Texts are cut to `LONGEST_ENTRY_CHARACTERS`.
        """
        self.record_all(name, [(job_id, data)])

    def record_all(self, name: str, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Record events of one kind in one statement, each with the id of its job or batch; see `record`."""
        self.flush()
        records = [{"job_id": job_id, "name": name, "data": _cut(data)} for job_id, data in entries]
        if records:
            self.connection().execute(sql_insert(Event).values(at=self.now()), records)


def _cut(data: Mapping[str, Any]) -> dict[str, Any]:
    most = LONGEST_ENTRY_CHARACTERS
    return {key: value[:most] if isinstance(value, str) else value for key, value in data.items()}
