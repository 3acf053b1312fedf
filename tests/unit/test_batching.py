"""Packing: no row is lost or computed twice, budgets hold, and equal chunks give equal batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from worker.models.batching import (
    PACKED_SPREAD,
    auto_max_rows,
    auto_max_tokens,
    batch_cost,
    divide,
    divide_without_padding,
    padded_tokens,
    split_by_bytes,
)

lengths_of_rows = st.lists(st.integers(min_value=0, max_value=600), max_size=300)
token_budgets = st.integers(min_value=1, max_value=5000)
row_budgets = st.integers(min_value=1, max_value=100)
batch_costs = st.integers(min_value=0, max_value=2000)


@given(lengths_of_rows, token_budgets, row_budgets, batch_costs)
def test_every_row_is_in_exactly_one_batch(lengths: list[int], max_tokens: int, max_rows: int, batch_cost: int) -> None:
    """A user would lose a row, or pay for it twice."""
    batches = divide(lengths, max_tokens=max_tokens, max_rows=max_rows, batch_cost=batch_cost)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    assert all(batches)


@given(lengths_of_rows, token_budgets, row_budgets, batch_costs)
def test_only_a_single_row_exceeds_the_budget(
    lengths: list[int], max_tokens: int, max_rows: int, batch_cost: int
) -> None:
    """A batch beyond the budget is one the device has no memory for."""
    for batch in divide(lengths, max_tokens=max_tokens, max_rows=max_rows, batch_cost=batch_cost):
        assert len(batch) <= max_rows
        assert len(batch) == 1 or padded_tokens([lengths[position] for position in batch]) <= max_tokens


@given(lengths_of_rows, token_budgets, row_budgets, batch_costs)
def test_longest_come_first_and_equal_lengths_keep_their_order(
    lengths: list[int], max_tokens: int, max_rows: int, batch_cost: int
) -> None:
    """The same chunk must be divided the same way on every slot, and too large a batch must show at the start."""
    order = [
        position
        for batch in divide(lengths, max_tokens=max_tokens, max_rows=max_rows, batch_cost=batch_cost)
        for position in batch
    ]
    assert order == sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))


def cost(lengths: list[int], batches: list[list[int]], batch_cost: int) -> int:
    """Padded tokens plus the cost of each batch."""
    return sum(padded_tokens([lengths[position] for position in batch]) + batch_cost for batch in batches)


@given(
    st.lists(st.integers(min_value=1, max_value=60), max_size=9), st.integers(1, 200), st.integers(1, 9), batch_costs
)
def test_no_other_way_to_cut_the_sorted_rows_is_cheaper(
    lengths: list[int], max_tokens: int, max_rows: int, batch_cost: int
) -> None:
    """Padding is paid for in the user's time."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    ways = []
    for places in itertools.product([False, True], repeat=max(0, len(order) - 1)):
        cuts = [0, *(place for place, is_cut in enumerate(places, start=1) if is_cut), len(order)]
        batches = [order[start:stop] for start, stop in itertools.pairwise(cuts) if stop > start]
        sizes = [(len(batch), padded_tokens([lengths[position] for position in batch])) for batch in batches]
        if all(rows == 1 or (rows <= max_rows and tokens <= max_tokens) for rows, tokens in sizes):
            ways.append(cost(lengths, batches, batch_cost))
    found = divide(lengths, max_tokens=max_tokens, max_rows=max_rows, batch_cost=batch_cost)
    assert cost(lengths, found, batch_cost) == min(ways, default=0)


@given(lengths_of_rows, token_budgets, row_budgets)
def test_without_padding_only_true_tokens_count_up_to_a_spread(
    lengths: list[int], max_tokens: int, max_rows: int
) -> None:
    batches = divide_without_padding(lengths, max_tokens=max_tokens, max_rows=max_rows, pads_outputs=True)
    order = [position for batch in batches for position in batch]
    assert order == sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    for batch in batches:
        of_batch = [max(1, lengths[position]) for position in batch]
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or sum(of_batch) <= max_tokens
        assert len(batch) == 1 or padded_tokens(of_batch) <= PACKED_SPREAD * max_tokens


def test_without_padding_a_long_row_shares_a_batch_with_short_ones() -> None:
    lengths = [256, *[8] * 11]
    limits = {"max_tokens": 3072, "max_rows": 256}
    assert divide_without_padding(lengths, **limits, pads_outputs=True) == [list(range(12))]


def test_one_long_row_does_not_pad_the_short_ones() -> None:
    """A chunk of docstrings with one page among them."""
    batches = divide([256, *[8] * 11], max_tokens=3072, max_rows=256, batch_cost=64)
    assert [len(batch) for batch in batches] == [1, 11]


def test_a_very_long_chunk_is_divided() -> None:
    """`chunk_rows` may be a million, and dividing must not take longer than computing."""
    batches = divide([7] * 20_000, max_tokens=3072, max_rows=256, batch_cost=64)
    assert sum(map(len, batches)) == 20_000


def test_no_rows_make_no_batch() -> None:
    """A chunk of bad rows only has nothing to compute."""
    assert divide([], max_tokens=100, max_rows=10, batch_cost=1) == []
    assert padded_tokens([]) == 0


def test_the_budget_of_a_gpu_grows_with_its_memory_up_to_a_limit() -> None:
    """A small GPU must not start with batches that only a large one can hold."""
    assert auto_max_tokens("cpu", 2**40) == 3072
    assert auto_max_tokens("cpu", 2**40, generates=True) == 24_576
    assert auto_max_tokens("cuda", 80 * 2**30) == 65_536
    assert auto_max_tokens("cuda", 4 * 2**30) == 16_384
    assert auto_max_tokens("cuda", -1) == 1024
    assert auto_max_rows("cpu") < auto_max_rows("cuda")
    assert batch_cost("cpu") < batch_cost("cuda")


def test_rows_are_split_by_their_memory_in_order() -> None:
    taken: list[int] = []

    def rows() -> Iterator[int]:
        for size in (3, 3, 9, 0, 0, 2, 5):
            taken.append(size)
            yield size

    parts = split_by_bytes(rows(), lambda size: size, 6)
    assert next(parts) == [3, 3]
    assert taken == [3, 3, 9]
    assert list(parts) == [[9], [0, 0, 2], [5]]
    assert list(split_by_bytes([], len, 6)) == []
