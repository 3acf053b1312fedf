"""Short texts of errors."""

from __future__ import annotations

from jobs.messages import one_line


def test_one_line_is_one_short_line() -> None:
    """A row error never contains a traceback or a page of text."""
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 10_000))) == 300
