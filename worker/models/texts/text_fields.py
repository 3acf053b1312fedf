"""Check that a row's texts, or lists of words, can be handed to a tokenizer."""

from __future__ import annotations

from jobs.data.rows import Row, RowError, RowErrorCode


def unusable_text(row: Row) -> RowError | None:
    """The row error if `text` is not a text, or `text_pair` is neither a text nor missing."""
    for name in ("text", "text_pair"):
        value = row.values.get(name)
        if value is None and name == "text":
            return RowError(RowErrorCode.NULL_VALUE, "the row has no text")
        if value is not None and not isinstance(value, str):
            return RowError(RowErrorCode.WRONG_TYPE, f"{name} must be a text, not a {type(value).__name__}")
    return None


def unusable_words(row: Row) -> RowError | None:
    """The row error if `text` is not a list of words."""
    words = row.values.get("text")
    if words is None:
        return RowError(RowErrorCode.NULL_VALUE, "the row has no text")
    if not isinstance(words, list):
        kind = "a text" if isinstance(words, str) else f"a {type(words).__name__}"
        return RowError(
            RowErrorCode.WRONG_TYPE, f"text must be a list of words, because is_split_into_words is set, not {kind}"
        )
    for number, word in enumerate(words):
        if not isinstance(word, str):
            return RowError(RowErrorCode.WRONG_TYPE, f"text[{number}] must be a word, not a {type(word).__name__}")
    return None
