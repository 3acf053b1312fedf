"""Columns and indexes that several tables use."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Column, Enum, Index, Integer, Text, text
from sqlmodel import Field

BIG_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite generates only keys of type INTEGER


def state_column(states: type[StrEnum], default: StrEnum | None = None) -> Any:
    """A column for one of these states; required if there is no default."""
    values = Enum(states, native_enum=False, length=20, create_constraint=False, values_callable=list)
    column: Any = Column(values, nullable=False)
    return Field(sa_column=column) if default is None else Field(default=default, sa_column=column)


def optional_state_column(states: type[StrEnum]) -> Any:
    """A column for one of these states, or NULL."""
    values = Enum(states, native_enum=False, length=20, create_constraint=False, values_callable=list)
    return Field(default=None, sa_column=Column(values, nullable=True))


def text_column(nullable: bool = False) -> Any:
    """A column for text of any length."""
    return Column(Text, nullable=nullable)


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index of the rows that meet a condition."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))
