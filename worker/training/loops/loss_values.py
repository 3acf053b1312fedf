"""The exact losses of each step, kept on the device until they are reported: reading each loss would stall a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch

from worker.training.collectives import Gang

Point = tuple[int, str, float]
"""One value of a metric: (step, name, value)."""
LOSS = "loss"
"""Name of the loss that is minimised. Further losses are only recorded."""


class Losses:
    """Collects the losses of steps, and measures rows per second. Time for other work can be left out."""

    def __init__(self, gang: Gang) -> None:
        """
        Args:
            gang: The ranks over which each loss is averaged.
        """
        self._gang = gang
        self._of_step: dict[str, torch.Tensor] = {}
        self._steps: list[tuple[int, dict[str, torch.Tensor]]] = []
        self._since: float | None = None
        self._num_rows, self._seconds = 0, 0.0
        self._all_rows, self._all_seconds = 0, 0.0
        self.latest = math.nan
        """Loss of the latest step that was read from the device."""

    def add(self, parts: Mapping[str, torch.Tensor]) -> None:
        """Add a micro-batch's part of the step's losses, by name; one of the names is `loss`."""
        for name, part in parts.items():
            before = self._of_step.get(name)
            self._of_step[name] = part.detach() if before is None else before + part.detach()

    def end_step(self, step: int, num_rows: int) -> None:
        """End a step. The time since the previous call counts as time for its rows."""
        self._steps.append((step, self._of_step))
        self._of_step = {}
        if self._since is not None:  # the first step is not timed: libraries load much on first use
            self._num_rows += num_rows
            self._seconds += time.monotonic() - self._since
        self._since = time.monotonic()

    def skip_time(self) -> None:
        """Leave out the time since the last step's end, which was spent on an evaluation or a checkpoint."""
        if self._since is not None:
            self._since = time.monotonic()

    def read(self) -> list[Point]:
        """Return the losses since the last call, read from the device at once. All ranks call this at the same step."""
        if not self._steps:
            return []
        named = [(step, name) for step, parts in self._steps for name in parts]
        losses = [part for _, parts in self._steps for part in parts.values()]
        values = self._gang.all_reduce_mean(torch.stack(losses).double().tolist())
        points = [(step, name, value) for (step, name), value in zip(named, values, strict=True)]
        self.latest = next(value for _, name, value in reversed(points) if name == LOSS)
        self._steps = []
        return points

    def read_rate(self) -> float | None:
        """Return the rows per second since the last call; None if no step was timed."""
        num_rows, seconds = self._num_rows, self._seconds
        self._all_rows, self._all_seconds = self._all_rows + num_rows, self._all_seconds + seconds
        self._num_rows, self._seconds = 0, 0.0
        return num_rows / seconds if seconds > 0 else None

    @property
    def mean_rate(self) -> float | None:
        """Rows per second over all steps but the first; None if there was no other step."""
        seconds = self._all_seconds + self._seconds
        return (self._all_rows + self._num_rows) / seconds if seconds > 0 else None
