"""Keys and values of rows that come and go while the others are being continued.

Every row ends at the same column, so that one forward pass of one token each goes on with all of them: the layout of a
batch padded on the left, which every decoder of transformers takes. A row that joins is copied in so that it ends
there too; a row that leaves is overwritten by the last one. The columns before the longest row are cut off on the way
out, and when no column is left, what is alive moves to the front.

Shapes: B rows, H heads, C columns, D dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

_SPARE_COLUMNS = 64
"""Columns allocated beyond those needed: the whole cache is moved once in as many steps."""


class _Window:
    """Which part of the storage is alive; shared by all layers."""

    num_rows = 0
    first = 0
    stop = 0


class _Layer(DynamicLayer):  # type: ignore[misc]
    """One layer's storage; `update` is called by the model with the newest token of each row."""

    def __init__(self, window: _Window, keys_BHCD: torch.Tensor, values_BHCD: torch.Tensor) -> None:
        super().__init__()
        self.is_initialized = True
        self.window = window
        self.keys, self.values = keys_BHCD, values_BHCD

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write behind the newest column, and give the model all that is alive."""
        window = self.window
        stop = window.stop + key_states.shape[-2]
        alive = (slice(window.num_rows), slice(None), slice(window.first, stop))
        written = (slice(window.num_rows), slice(None), slice(window.stop, stop))
        self.keys[written], self.values[written] = key_states, value_states
        return self.keys[alive], self.values[alive]

    def get_seq_length(self) -> int:
        """Columns before the token that is being computed."""
        return self.window.stop - self.window.first


class RowCache:
    """The cache of the rows that are being continued, for models whose only memory is keys and values."""

    def __init__(self) -> None:
        self._window = _Window()
        self._layers: list[_Layer] = []
        self._cache: Cache | None = None
        self.lengths: list[int] = []
        """Tokens that each row has in the cache, in the order of the rows."""

    @property
    def cache(self) -> Cache:
        """For the model's forward pass; after it, call `advance`."""
        assert self._cache is not None, "no row has joined"
        return self._cache

    def advance(self) -> None:
        """Every row got one token."""
        self._window.stop += 1
        self.lengths = [length + 1 for length in self.lengths]

    def make_room(self) -> None:
        """Have a column free for the next token, and none before the longest row."""
        longest = max(self.lengths)
        self._window.first = self._window.stop - longest
        if self._window.stop == self._num_columns:
            self._move(longest, num_rows=self._num_slots)

    def attention_mask(self, device: torch.device) -> torch.Tensor:
        """(B, C) int64: 1 on the columns of each row, the next token's included."""
        num_columns = self._window.stop - self._window.first + 1
        columns_C = torch.arange(num_columns, device=device)
        first_B = torch.tensor([num_columns - 1 - length for length in self.lengths], device=device)
        return (columns_C[None, :] >= first_B[:, None]).long()

    def join(self, prefilled: DynamicCache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Add rows behind those that are there.

        Args:
            prefilled: of a batch padded on the left.
            rows: which rows of that batch, one of them as often as it is wanted.
            lengths: tokens of each.
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
                # What a row does not see counts times 0, which a NaN of the row that was here before would survive.
                kept[before:num_rows].zero_()
                kept[target] = fresh[:, :, -width:].index_select(0, picked)

    def leave(self, rows: Sequence[int]) -> list[int]:
        """Drop rows.

        Returns:
            What the rows are now, by their places before.
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
        """Have storage for so many rows of so many columns, with what is alive ending at column `longest`."""
        if not self._layers:
            for source in prefilled.layers:
                self._layers.append(_Layer(self._window, source.keys[:0, :, :0], source.values[:0, :, :0]))
            self._cache = Cache(layers=self._layers)
        self._move(longest, num_rows=max(num_rows, self._num_slots))

    def _move(self, stop: int, *, num_rows: int) -> None:
        """Put what is alive where it ends at column `stop`, in new storage for so many rows."""
        window = self._window
        num_columns = stop + 1 + _SPARE_COLUMNS
        width = min(stop, window.stop - window.first)
        source = (slice(window.num_rows), slice(None), slice(window.stop - width, window.stop))
        target = (slice(window.num_rows), slice(None), slice(stop - width, stop))
        for layer in self._layers:
            for name in ("keys", "values"):
                before: torch.Tensor = getattr(layer, name)
                # Zeros: what a row does not see is multiplied by 0, and uninitialised memory may hold a NaN.
                moved = before.new_zeros((num_rows, before.shape[1], num_columns, before.shape[3]))
                moved[target] = before[source]
                setattr(layer, name, moved)
        window.first, window.stop = stop - width, stop


class SoloCache:
    """The cache of one row at a time, for models that keep another state than keys and values: it cannot be moved."""

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
        """See `RowCache`. There is no end to it."""

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
