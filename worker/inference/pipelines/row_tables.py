"""Parse a row's table or words with boxes, which pipelines misread or reject without saying what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from jobs.data.rows import RowError, RowErrorCode

_LARGEST_COORDINATE = 1000
_TABLE = "it must be a mapping of columns to lists of cells, a list of mappings with the same columns, or its JSON text"
_WORD_BOXES = (
    f"it must be a list of pairs of a word and its box of four whole numbers from 0 to {_LARGEST_COORDINATE}, or "
    "JSON text of such a list"
)


def row_table(value: Any) -> Any:
    """Parse the table of a row.

    The cells become texts, since models read only texts, and null becomes an empty cell.

    Returns:
        A mapping of columns to lists of texts, or a RowError.
    """
    table = _from_json(value)
    if isinstance(table, list) and table and all(isinstance(line, dict) for line in table):
        names = list(table[0])
        if any(line.keys() != table[0].keys() for line in table):
            return _wrong("table", "its mappings do not all have the same columns")
        table = {name: [line[name] for line in table] for name in names}
    if not isinstance(table, dict) or not all(isinstance(cells, list) for cells in table.values()):
        return _wrong("table", _TABLE)
    lengths = {len(cells) for cells in table.values()}
    if len(lengths) > 1:
        return _wrong("table", "its columns do not all have the same number of cells")
    if lengths in (set(), {0}):
        return RowError(RowErrorCode.EMPTY_ROW, "the table is empty")
    return {str(name): [_cell(cell) for cell in cells] for name, cells in table.items()}


def row_word_boxes(value: Any) -> Any:
    """Parse the words of a document and their boxes.

    Returns:
        A list of (word, [left, top, right, bottom]), an empty value unchanged, or a RowError.
    """
    if not value:
        return value
    pairs = _from_json(value)
    if not isinstance(pairs, list):
        return _wrong("word_boxes", _WORD_BOXES)
    found = [_word_box(pair) for pair in pairs]
    return _wrong("word_boxes", _WORD_BOXES) if None in found else found


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return None


def _cell(cell: Any) -> str:
    return "" if cell is None else str(cell)


def _word_box(pair: Any) -> tuple[str, list[int]] | None:
    match pair:
        case [str(word), [_, _, _, _] as box] if all(map(_is_coordinate, box)):
            return word, [int(edge) for edge in box]
    return None


def _is_coordinate(edge: Any) -> bool:
    is_whole = isinstance(edge, int) or (isinstance(edge, float) and edge.is_integer())
    return is_whole and not isinstance(edge, bool) and 0 <= edge <= _LARGEST_COORDINATE


def _wrong(name: str, reason: str) -> RowError:
    return RowError(RowErrorCode.WRONG_TYPE, f"input '{name}': {reason}")


PARSERS: Mapping[str, Callable[[Any], Any]] = {"table": row_table, "word_boxes": row_word_boxes}
"""Name of an input -> function that parses it; it returns a RowError for an invalid value."""
