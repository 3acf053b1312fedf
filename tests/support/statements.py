"""The SQL that some work sends: how many transactions it commits, and how the database would run its queries."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event, text

from jobs.db.database import Database

_SMALL = re.compile(r"slots|leader|anon_\d+|batches|job_totals|project_uses|project_days|projects")
"""Tables that stay small, and subqueries that stop at a limit."""


@dataclass(slots=True)
class Commits:
    """Counts commits."""

    number: int = 0


@contextmanager
def count_commits(db: Database) -> Iterator[Commits]:
    """Count the transactions that are committed through this object inside the block."""
    commits = Commits()

    def note(_connection: Any) -> None:
        commits.number += 1

    event.listen(db.engine, "commit", note)
    try:
        yield commits
    finally:
        event.remove(db.engine, "commit", note)


@dataclass(slots=True)
class Steps:
    """Counts steps of SQLite's virtual machine."""

    number: int = 0


@contextmanager
def count_steps(db: Database) -> Iterator[Steps]:
    """Count the steps of all statements inside the block, on a SQLite database, whose connections are opened anew."""
    steps = Steps()

    def count() -> int:
        steps.number += 1
        return 0

    def watch(connection: sqlite3.Connection, _record: object) -> None:
        connection.set_progress_handler(count, 1)

    db.engine.dispose()
    event.listen(db.engine, "connect", watch)
    try:
        yield steps
    finally:
        event.remove(db.engine, "connect", watch)
        db.engine.dispose()


@dataclass(slots=True)
class Plans:
    """The plans of the queries that were sent, by their text."""

    found: dict[str, str] = field(default_factory=dict)

    def assert_indexed(self) -> None:
        """No plan reads a whole table that grows."""
        assert self.found
        for statement, plan in self.found.items():
            scanned = set(re.findall(r"(?:Seq Scan on|^SCAN) ([a-z_]+)\b(?! USING)", plan, re.MULTILINE))
            assert all(map(_SMALL.fullmatch, scanned)), f"{statement}\n{plan}"


@contextmanager
def explained(db: Database) -> Iterator[Plans]:
    """Explain each statement inside the block that reads or changes tables, with its own parameters."""
    plans = Plans()
    prefix = "EXPLAIN QUERY PLAN " if db.is_sqlite else "EXPLAIN "

    def explain(_connection: Any, cursor: Any, statement: str, parameters: Any, _context: Any, is_many: bool) -> None:
        if is_many or not statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE")):
            return
        cursor.execute(prefix + statement, parameters)
        rows = cursor.fetchall()
        plans.found[statement] = "\n".join(str(row[3] if db.is_sqlite else row[0]) for row in rows)

    event.listen(db.engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(db.engine, "before_cursor_execute", explain)


def analyze(db: Database) -> None:
    """Let the database count its rows, as it does by itself after a while."""
    with db.engine.connect() as connection, connection.begin():
        connection.execute(text("ANALYZE"))
