"""How many row errors a job may have: a pure decision from the recorded counts, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.data import row_errors
from jobs.data.row_errors import FIRST_ROWS, RowErrors, merge, note, verdict
from jobs.data.rows import Result, RowError
from jobs.errors import InvalidSpec
from jobs.specs.fields import parse_row_error_limit
from jobs.specs.inference import parse_spec


def failed(row: int, message: str = "the row has no text", code: str = "null_value") -> Result:
    """A row without an output."""
    return Result(row, None, None, RowError(code, message))


def done(row: int) -> Result:
    """A row with one."""
    return Result(row, None, 1)


def decide(chunks: Sequence[Sequence[Result]], limit: str | None = None, num_rows: int | None = None) -> str | None:
    """The message that a job fails with once these chunks are recorded one by one, or None."""
    noted, num_failed = RowErrors(), 0
    total = num_rows if num_rows is not None else sum(map(len, chunks))
    for chunk in chunks:
        noted = note(noted, chunk)
        num_failed += sum(result.error is not None for result in chunk)
        error = verdict(limit, noted, num_rows=total, num_failed=num_failed)
        if error is not None:
            return error.message
    return None


@pytest.mark.parametrize("num_rows", [1, 2, 3, 40])
def test_a_job_whose_rows_all_fail_alike_fails(num_rows: int) -> None:
    message = decide([[failed(row)] for row in range(num_rows)])
    assert message is not None
    assert "row 0: null_value: the row has no text" in message


def test_one_row_that_differs_lets_a_small_job_complete() -> None:
    bad = [failed(row) for row in range(9)]
    for other in (done(9), failed(9, "another reason"), failed(9, code="empty_row")):
        assert decide([bad, [other]]) is None
        assert decide([[other], bad]) is None


def test_names_paths_and_numbers_make_no_other_error() -> None:
    messages = (
        "'/data/a 1.wav' cannot be opened: ffmpeg was not found at 0xff",
        "'/data/b.wav' cannot be opened: ffmpeg was not found at 0x1a2",
        '"c.wav" cannot be opened: ffmpeg was not found at 7',
    )
    assert decide([[failed(row, message)] for row, message in enumerate(messages)]) is not None
    assert decide([[failed(0, "in /tmp/a: no audio")], [failed(1, "in /x/y/z: no audio")]]) is not None


def test_a_large_job_fails_once_its_first_rows_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_errors, "FIRST_ROWS", 20)
    chunks = [[failed(row) for row in range(start, start + 8)] for start in range(0, 24, 8)]
    assert decide(chunks[:2], num_rows=10**6) is None
    message = decide(chunks, num_rows=10**6)
    assert message is not None
    assert message.startswith("the first 20 rows failed with the same error; row 0: null_value")


@given(order=st.permutations(range(5)), bad=st.sets(st.integers(0, 19)))
def test_the_order_of_commits_changes_no_verdict(order: list[int], bad: set[int]) -> None:
    rows = [failed(row) if row in bad else done(row) for row in range(20)]
    chunks = [rows[start : start + 4] for start in range(0, 20, 4)]
    for limit in (None, "0", "10", "25%", "100%"):
        in_order, shuffled = decide(chunks, limit), decide([chunks[index] for index in order], limit)
        assert (in_order is None) == (shuffled is None)


@given(
    holders=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    kinds=st.lists(st.sampled_from([None, "the row has no text", "another reason"]), min_size=20, max_size=20),
    num_first=st.sampled_from([7, 20]),
)
def test_summaries_of_several_leases_are_merged_to_the_same(
    holders: list[int], kinds: list[str | None], num_first: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_errors, "FIRST_ROWS", num_first)
        rows = [done(row) if kind is None else failed(row, kind) for row, kind in enumerate(kinds)]
        chunks = [rows[start : start + 4] for start in range(0, 20, 4)]
        together, apart = RowErrors(), dict.fromkeys(range(4), RowErrors())
        for holder, chunk in zip(holders, chunks, strict=True):
            together, apart[holder] = note(together, chunk), note(apart[holder], chunk)
        assert merge(apart.values()) == together


@pytest.mark.parametrize(
    ("limit", "num_failed", "fails"),
    [("0", 0, False), ("0", 1, True), ("3", 3, False), ("3", 4, True), ("5%", 5, False), ("5%", 6, True),
     ("0.5%", 0, False), ("0.5%", 1, True), ("100%", 100, False)],
)  # fmt: skip
def test_a_limit_is_exact(limit: str, num_failed: int, fails: bool) -> None:
    rows = [failed(row) for row in range(num_failed)] + [done(row) for row in range(num_failed, 100)]
    assert (decide([rows], limit) is not None) == fails


def test_a_limit_of_ones_own_replaces_the_default() -> None:
    everything = [failed(row) for row in range(5)]
    assert decide([everything], "100%") is None
    message = decide([everything], "2")
    assert message == "5 of 5 rows failed, but max_row_errors is 2; row 0: null_value: the row has no text"


def test_a_message_is_cut() -> None:
    message = decide([[failed(row, "x" * 10**6) for row in range(2)]])
    assert message is not None
    assert len(message) < 500


@pytest.mark.parametrize("value", [True, False, -1, 0.05, 5.0, "5", "-1%", "101%", "%", "", "1e1%", [5], {}, 2**60])
def test_what_is_no_limit_is_refused(value: object) -> None:
    with pytest.raises(
        InvalidSpec, match=r"^max_row_errors: must be a whole number of rows from 0, or a share"
    ) as caught:
        parse_spec({"task": "embeddings", "model": "m", "input": {"path": "x.csv"}, "max_row_errors": value})
    assert caught.value.param == "max_row_errors"


def test_limits_are_read_exactly() -> None:
    assert [parse_row_error_limit(value) for value in (0, 10, "5%", "0.5%", "100%")] == [
        0, 10, Fraction(1, 20), Fraction(1, 200), 1,
    ]  # fmt: skip


def test_the_first_rows_are_as_many_as_the_reference_says() -> None:
    assert FIRST_ROWS == 1000
