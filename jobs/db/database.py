"""The database engine, its transactions and clock, and the differences between SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
import time
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
_JULIAN_EPOCH_MILLISECONDS = 210_866_760_000_000  # from the start of the Julian period to 1970
_POSTGRES_CLOCK = "extract(epoch from clock_timestamp())::double precision"


class Database:
    """A database, shared by all threads of a process. Create a new object after a fork."""

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        """
        Args:
            url: A SQLAlchemy URL, `sqlite:///...` or `postgresql+psycopg://...`; `postgresql://` means the latter.
            clock: For tests, a function that returns Unix seconds in place of the database's clock.
        """
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise InvalidSpec(
                "database_url: must be a SQLAlchemy URL such as sqlite:///stoker.db", param="database_url"
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
        event.listen(self.engine, "checkin", self._close_returned)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    def close(self) -> None:
        """Close all connections. A connection in use is closed when its thread returns it."""
        self._is_closed = True
        self.engine.dispose()

    def _close_returned(self, _connection: object, record: ConnectionPoolEntry) -> None:
        if self._is_closed:
            record.invalidate()

    # -- transactions

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A transaction that writes. It is committed at the end, and rolled back on any exception.

        On SQLite it takes the write lock at its start, so that what it reads cannot change before it commits. Keep it
        short: never run a model or call another service inside one.

        Raises:
            ServiceUnavailable: The database cannot be reached. If the commit itself raised this, it may have succeeded:
                read the row back, by its token, to find out.
        """
        with self._turn(), self._transaction(immediate=True) as tx:
            yield tx
            tx.commit()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A transaction that only reads. Writers never block it; on SQLite it sees one consistent snapshot."""
        with self._transaction(immediate=False) as tx:
            yield tx

    def _turn(self) -> AbstractContextManager[None]:
        """On SQLite, wait in the kernel for other writers, by a lock on a separate file.

        SQLite itself waits by sleeping longer and longer between tries, up to 100 ms, so that other busy writers can
        overtake one dozens of times. This lock only makes waiting fair: SQLite's own lock still separates writers.
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
            read_clock = self._clock or (_sqlite_time if self.is_sqlite else None)
            with self.engine.connect() as connection:
                connection = connection.execution_options(stoker_immediate=immediate)
                with Transaction(connection, is_sqlite=self.is_sqlite, now=self.now, read_clock=read_clock) as tx:
                    yield tx
        except (DBAPIError, PoolTimeout) as error:
            # A PostgreSQL server that has become a read-only standby raises InternalError.
            is_away = isinstance(error, OperationalError | InternalError | PoolTimeout)
            if is_away or (isinstance(error, DBAPIError) and error.connection_invalidated):
                raise ServiceUnavailable(f"the database cannot be used: {_cause(error)}") from error
            raise

    # -- the clock

    def now(self) -> ColumnElement[float]:
        """The database's clock as an SQL expression, in Unix seconds. No decision uses the clock of a host."""
        if self._clock is not None:
            return literal(self._clock(), Double)
        return literal_column(_SQLITE_CLOCK if self.is_sqlite else _POSTGRES_CLOCK, Double)

    # -- availability

    def ping(self) -> None:
        """Raise ServiceUnavailable if the database does not respond."""
        with self.read() as tx:
            tx.execute(text("SELECT 1"))


def _sqlite_time() -> float:
    """What `_SQLITE_CLOCK` would return now, to the last bit: SQLite, too, counts milliseconds by this host's clock."""
    milliseconds = _JULIAN_EPOCH_MILLISECONDS + time.time_ns() // 1_000_000
    return (milliseconds / 86_400_000.0 - 2440587.5) * 86400.0


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver must not open transactions; `_begin_sqlite` does
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a finished commit survives a power failure
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("stoker_immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _cause(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return first_line(cause)
