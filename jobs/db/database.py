"""The engine, its transactions, the database's own clock, and all that differs between SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Engine,
    create_engine,
    event,
    literal,
    literal_column,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InternalError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from jobs import locks
from jobs.db.transaction import Transaction
from jobs.errors import InvalidSpec, ServiceUnavailable
from jobs.messages import first_line

_BUSY_SECONDS = 30.0
_SQLITE_CLOCK = "((julianday('now') - 2440587.5) * 86400.0)"
_POSTGRES_CLOCK = "extract(epoch from clock_timestamp())::double precision"


class Database:
    """One database, shared by the threads of a process. Make a new one after a fork."""

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        """
        Args:
            url: a SQLAlchemy URL, `sqlite:///...` or `postgresql+psycopg://...` (`postgresql://` is read as that).
            clock: for tests, Unix seconds that stand in for the database's clock.
        """
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise InvalidSpec(
                "database_url is not a SQLAlchemy URL, such as sqlite:///stoker.db", param="database_url"
            ) from error
        if parsed.drivername in {"postgresql", "postgres"}:
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.url = parsed
        self._clock = clock
        options: dict[str, Any] = (
            {"connect_args": {"timeout": _BUSY_SECONDS, "check_same_thread": False}}
            if self.is_sqlite
            else {
                "pool_pre_ping": True,
                "connect_args": {
                    "connect_timeout": 10,
                    "keepalives_idle": 10,
                    "keepalives_interval": 5,
                    "keepalives_count": 3,
                },
            }
        )
        if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
            raise InvalidSpec(
                f"database_url: '{parsed.drivername}' is not supported; use sqlite:///... or postgresql+psycopg://...",
                param="database_url",
            )
        try:
            self.engine: Engine = create_engine(parsed, pool_size=8, max_overflow=24, **options)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise InvalidSpec(
                f"database_url: the driver for '{parsed.drivername}' is not installed (pip install 'stoker[postgres]')",
                param="database_url",
            ) from error
        self._is_closed = False
        event.listen(self.engine, "checkin", self._take_back)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    def close(self) -> None:
        """Close every connection; one that a thread still uses, as soon as it gives it back."""
        self._is_closed = True
        self.engine.dispose()

    def _take_back(self, _connection: object, record: ConnectionPoolEntry) -> None:
        if self._is_closed:
            record.invalidate()

    # -- transactions

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A transaction that writes; committed at the end, rolled back on any exception.

        On SQLite it takes the write lock at its start, so that what it reads stays true until it commits. Keep it
        short: never hold one across model work or a call to another service.

        Raises:
            ServiceUnavailable: the database cannot be reached. After one from the commit itself, the outcome is not
                known: read back by token before deciding.
        """
        with self._turn(), self._transaction(immediate=True) as tx:
            yield tx
            tx.commit()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A transaction that only reads, one consistent snapshot on SQLite, never blocked by a writer."""
        with self._transaction(immediate=False) as tx:
            yield tx

    def _turn(self) -> AbstractContextManager[None]:
        """On SQLite, the wait for the write lock, in the kernel.

        SQLite itself waits by sleeping ever longer between tries, up to 100 ms, so that of several busy writers one
        can be passed by dozens of times. The file is only waited on: SQLite's own lock is what keeps writers apart.
        """
        name = self.url.database or ""
        if not self.is_sqlite or name in {"", ":memory:"} or name.startswith("file:"):
            return nullcontext()
        path = f"{name}-turn"
        try:
            return locks.held(locks.open_lock(path))
        except OSError as error:
            raise ServiceUnavailable(f"the database cannot be used: {error.strerror}: {path}") from error

    @contextmanager
    def _transaction(self, *, immediate: bool) -> Iterator[Transaction]:
        try:
            with self.engine.connect() as connection:
                connection = connection.execution_options(stoker_immediate=immediate)
                with Transaction(connection, is_sqlite=self.is_sqlite, now=self.now) as tx:
                    yield tx
        except (DBAPIError, PoolTimeout) as error:
            # InternalError is what a PostgreSQL server says that became a read-only standby, until it is left.
            is_away = isinstance(error, OperationalError | InternalError | PoolTimeout)
            if is_away or (isinstance(error, DBAPIError) and error.connection_invalidated):
                raise ServiceUnavailable(f"the database cannot be used: {_cause(error)}") from error
            raise

    # -- the clock

    def now(self) -> ColumnElement[float]:
        """The database's clock as an SQL expression, Unix seconds. Hosts' clocks never decide anything."""
        if self._clock is not None:
            return literal(self._clock(), Double)
        return literal_column(_SQLITE_CLOCK if self.is_sqlite else _POSTGRES_CLOCK, Double)

    # -- whether it answers

    def ping(self) -> None:
        """Raises ServiceUnavailable where the database does not answer."""
        with self.read() as tx:
            tx.execute(text("SELECT 1"))


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event opens each transaction itself
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a commit that was answered survives a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("stoker_immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _cause(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return first_line(cause)
