"""The one place where states change: each change names the state it expects, and the transition table must have it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from sqlalchemy import Update, update
from sqlmodel import col

from jobs.db.states import TRANSITIONS

State = TypeVar("State", bound=StrEnum)


class Stateful(Protocol[State]):
    """A row of a table with states."""

    state: State


def move(row: Stateful[State], to: State) -> None:
    """Change the state of a row that this transaction holds.

    Raises:
        ValueError: The transition table does not have this change.
    """
    check(row.state, to)
    row.state = to


def moving(table: type[Stateful[State]], before: State | Iterable[State], to: State) -> Update:
    """An UPDATE that changes the state of those rows that are in an expected state; the caller says which rows.

    Args:
        table: Class of the rows.
        before: The expected state, or several. `to` itself may be one of them: then the row is updated and stays in it.
        to: The state afterwards.

    Raises:
        ValueError: The transition table does not have one of these changes.
    """
    expected = (before,) if isinstance(before, StrEnum) else tuple(before)
    for state in expected:
        if state != to:
            check(state, to)
    column: Any = col(table.state)
    return update(table).where(column.in_(expected)).values(state=to)


def check(before: State, to: State) -> None:
    """Raise a ValueError where the transition table does not have this change."""
    if to not in TRANSITIONS[type(before)][before]:
        raise ValueError(f"a {type(before).__name__} never changes from {before} to {to}")
