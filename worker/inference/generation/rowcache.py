"""Key-value cache of rows that join and leave while other rows are continued.

Every row ends at the same column, so that one forward pass computes the next token of all rows. This is the layout of a
batch padded on the left, which every decoder of transformers accepts. A joining row is copied in so that it ends at
that column; a leaving row is overwritten by the last one. The model does not get the columns before the longest row,
and when no column is left, the live part moves to the front of new storage.

Shapes: B rows, H heads, C columns, D dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import Cache, DynamicCache, DynamicLayer

_SPARE_COLUMNS = 64
"""Columns allocated beyond those needed; the whole cache is moved once per this number of steps."""


class _Window:
    """Which part of the storage is live; shared by all layers."""

    num_rows = 0
    first = 0
    stop = 0


class _Layer(DynamicLayer):  # type: ignore[misc]
    """The storage of one layer; the model calls `update` with the newest token of each row."""

    def __init__(self, window: _Window, keys_BHCD: torch.Tensor, values_BHCD: torch.Tensor) -> None:
        super().__init__()
        self.is_initialized = True
        self.window = window
        self.keys, self.values = keys_BHCD, values_BHCD

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write after the newest column, and return the live part of the storage."""
        window = self.window
        stop = window.stop + key_states.shape[-2]
        alive = (slice(window.num_rows), slice(None), slice(window.first, stop))
        written = (slice(window.num_rows), slice(None), slice(window.stop, stop))
        self.keys[written], self.values[written] = key_states, value_states
        return self.keys[alive], self.values[alive]

    def get_seq_length(self) -> int:
        """Number of columns before the token that is being computed."""
        return self.window.stop - self.window.first


class RowCache:
    """The cache of the running rows, for models whose only state is keys and values."""

    def __init__(self) -> None:
        self._window = _Window()
        self._layers: list[_Layer] = []
        self._cache: Cache | None = None
        self.lengths: list[int] = []
        """Number of tokens that each row has in the cache, in the order of the rows."""

    @property
    def cache(self) -> Cache:
        """The cache to pass to the model; call `advance` after the forward pass."""
        assert self._cache is not None, "no row has joined"
        return self._cache

    def advance(self) -> None:
        """Record that every row got one token."""
        self._window.stop += 1
        self.lengths = [length + 1 for length in self.lengths]

    def make_room(self) -> None:
        """Free a column for the next token, and drop the columns before the longest row."""
        longest = max(self.lengths)
        self._window.first = self._window.stop - longest
        if self._window.stop == self._num_columns:
            self._move(longest, num_rows=self._num_slots)

    def attention_mask(self, device: torch.device) -> torch.Tensor:
        """Attention mask, (B, C) int64: 1 on the columns of each row, including that of the next token."""
        num_columns = self._window.stop - self._window.first + 1
        columns_C = torch.arange(num_columns, device=device)
        first_B = torch.tensor([num_columns - 1 - length for length in self.lengths], device=device)
        return (columns_C[None, :] >= first_B[:, None]).long()

    def join(self, prefilled: DynamicCache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Add rows after the present ones.

        Args:
            prefilled: Cache of a batch padded on the left.
            rows: Rows of that batch to add; a row may occur more than once.
            lengths: Number of tokens of each added row.
        """
        before, window = len(self.lengths), self._window
        self.lengths += lengths
        longest, num_rows = max(self.lengths), len(self.lengths)
        if not before:
            window.first = window.stop = 0
        if num_rows > self._num_slots or longest > window.stop or not self._layers:
            self._place(prefilled, longest, num_rows)
        window.num_rows = num_rows
        window.first = window.stop - longest
        width = max(lengths)
        for layer, source in zip(self._layers, prefilled.layers, strict=True):
            picked = torch.tensor(rows, device=source.keys.device)
            target = (slice(before, num_rows), slice(None), slice(window.stop - width, window.stop))
            for kept, fresh in ((layer.keys, source.keys), (layer.values, source.values)):
                # Masked values are multiplied by 0, but a NaN left by an earlier row would stay a NaN.
                kept[before:num_rows].zero_()
                kept[target] = fresh[:, :, -width:].index_select(0, picked)

    def leave(self, rows: Sequence[int]) -> list[int]:
        """Drop rows.

        Returns:
            The remaining rows in their new order, by their old positions.
        """
        gone, window = set(rows), self._window
        num_left = len(self.lengths) - len(gone)
        moved = [row for row in range(num_left, len(self.lengths)) if row not in gone]
        holes = [row for row in sorted(gone) if row < num_left]
        order = list(range(num_left))
        for hole, row in zip(holes, moved, strict=True):
            order[hole] = row
        if moved:
            alive = slice(window.first, window.stop)
            for layer in self._layers:
                layer.keys[holes, :, alive] = layer.keys[moved, :, alive]
                layer.values[holes, :, alive] = layer.values[moved, :, alive]
        self.lengths = [self.lengths[row] for row in order]
        window.num_rows = num_left
        return order

    # -- storage

    @property
    def _num_slots(self) -> int:
        return self._layers[0].keys.shape[0] if self._layers else 0

    @property
    def _num_columns(self) -> int:
        return self._layers[0].keys.shape[2] if self._layers else 0

    def _place(self, prefilled: DynamicCache, longest: int, num_rows: int) -> None:
        """Allocate storage for `num_rows` rows, with the live part ending at column `longest`."""
        if not self._layers:
            for source in prefilled.layers:
                self._layers.append(_Layer(self._window, source.keys[:0, :, :0], source.values[:0, :, :0]))
            self._cache = Cache(layers=self._layers)
        self._move(longest, num_rows=max(num_rows, self._num_slots))

    def _move(self, stop: int, *, num_rows: int) -> None:
        """Move the live part to new storage for `num_rows` rows, where it ends at column `stop`."""
        window = self._window
        num_columns = stop + 1 + _SPARE_COLUMNS
        width = min(stop, window.stop - window.first)
        source = (slice(window.num_rows), slice(None), slice(window.stop - width, window.stop))
        target = (slice(window.num_rows), slice(None), slice(stop - width, stop))
        for layer in self._layers:
            for name in ("keys", "values"):
                before: torch.Tensor = getattr(layer, name)
                # Zeros, since masked values are multiplied by 0 and uninitialised memory may hold a NaN.
                moved = before.new_zeros((num_rows, before.shape[1], num_columns, before.shape[3]))
                moved[target] = before[source]
                setattr(layer, name, moved)
        window.first, window.stop = stop - width, stop


class SoloCache:
    """The cache of one row at a time, for models with a state other than keys and values, which cannot be moved."""

    def __init__(self) -> None:
        self._cache: DynamicCache | None = None
        self.lengths: list[int] = []

    @property
    def cache(self) -> DynamicCache:
        """See `RowCache`."""
        assert self._cache is not None, "no row has joined"
        return self._cache

    def advance(self) -> None:
        """See `RowCache`."""
        self.lengths = [length + 1 for length in self.lengths]

    def make_room(self) -> None:
        """See `RowCache`. The cache of a single row grows without a limit."""

    def attention_mask(self, device: torch.device) -> torch.Tensor:
        """See `RowCache`."""
        return torch.ones((1, self.lengths[0] + 1), dtype=torch.long, device=device)

    def join(self, prefilled: DynamicCache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """See `RowCache`."""
        if len(rows) != 1 or self.lengths:
            raise ValueError("only one row at a time")
        self._cache, self.lengths = prefilled, list(lengths)

    def leave(self, rows: Sequence[int]) -> list[int]:
        """See `RowCache`."""
        if list(rows) != [0]:
            raise ValueError("there is one row at a time")
        self._cache, self.lengths = None, []
        return []
