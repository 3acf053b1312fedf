"""Functions that change states. Every change is checked against the transition table; nothing else sets a state."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from sqlalchemy import Update, update
from sqlmodel import col

from jobs.db.states import TRANSITIONS

State = TypeVar("State", bound=StrEnum)


class Stateful(Protocol[State]):
    """A row of a table that has a column `state`."""

    state: State


def move(row: Stateful[State], to: State) -> None:
    """Change the state of a row that this transaction has loaded.

    Raises:
        ValueError: The transition table does not allow this change.
    """
    check(row.state, to)
    row.state = to


def moving(table: type[Stateful[State]], before: State | Iterable[State], to: State) -> Update:
    """An UPDATE that changes the state of rows in an expected state. The caller adds the condition that selects rows.

    Args:
        table: The table class of the rows.
        before: One or more expected states. If `to` is among them, a row in that state is updated and keeps it.
        to: The new state.

    Raises:
        ValueError: The transition table does not allow one of these changes.
    """
    expected = (before,) if isinstance(before, StrEnum) else tuple(before)
    for state in expected:
        if state != to:
            check(state, to)
    column: Any = col(table.state)
    return update(table).where(column.in_(expected)).values(state=to)


def check(before: State, to: State) -> None:
    """Raise a ValueError if the transition table does not allow this change."""
    if to not in TRANSITIONS[type(before)][before]:
        raise ValueError(f"a {type(before).__name__} cannot change from {before} to {to}")
