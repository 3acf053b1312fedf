"""The exact losses of each step, kept on the device until somebody asks: a look at each step would stop a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch

from worker.training.collectives import Gang

Point = tuple[int, str, float]
"""(step, name, value)."""
LOSS = "loss"
"""What is learned from; the other names only tell of it."""


class Losses:
    """Collects losses, and measures how fast rows go by; time that goes elsewhere can be left out."""

    def __init__(self, gang: Gang) -> None:
        """
        Args:
            gang: over whose ranks each loss is averaged.
        """
        self._gang = gang
        self._of_step: dict[str, torch.Tensor] = {}
        self._steps: list[tuple[int, dict[str, torch.Tensor]]] = []
        self._since: float | None = None
        self._num_rows, self._seconds = 0, 0.0
        self._all_rows, self._all_seconds = 0, 0.0
        self.latest = math.nan
        """That of the last step that was fetched."""

    def add(self, parts: Mapping[str, torch.Tensor]) -> None:
        """Add a micro-batch's part of the step's losses, by their names; one is `loss`."""
        for name, part in parts.items():
            before = self._of_step.get(name)
            self._of_step[name] = part.detach() if before is None else before + part.detach()

    def end_step(self, step: int, num_rows: int) -> None:
        """Close a step; the time since the one before was spent on its rows."""
        self._steps.append((step, self._of_step))
        self._of_step = {}
        if self._since is not None:  # the first step brings with it what is loaded on first use
            self._num_rows += num_rows
            self._seconds += time.monotonic() - self._since
        self._since = time.monotonic()

    def skip_time(self) -> None:
        """Leave out the time since the last step's end: it went into an evaluation or a checkpoint."""
        if self._since is not None:
            self._since = time.monotonic()

    def take(self) -> list[Point]:
        """The losses since the last call, fetched from the device together. All ranks call it at the same step."""
        if not self._steps:
            return []
        named = [(step, name) for step, parts in self._steps for name in parts]
        losses = [part for _, parts in self._steps for part in parts.values()]
        values = self._gang.all_reduce_mean(torch.stack(losses).double().tolist())
        points = [(step, name, value) for (step, name), value in zip(named, values, strict=True)]
        self.latest = next(value for _, name, value in reversed(points) if name == LOSS)
        self._steps = []
        return points

    def take_rate(self) -> float | None:
        """Rows per second since the last call; None where none were timed."""
        num_rows, seconds = self._num_rows, self._seconds
        self._all_rows, self._all_seconds = self._all_rows + num_rows, self._all_seconds + seconds
        self._num_rows, self._seconds = 0, 0.0
        return num_rows / seconds if seconds > 0 else None

    @property
    def mean_rate(self) -> float | None:
        """Rows per second over all steps but the first; None where there was no other."""
        seconds = self._all_seconds + self._seconds
        return (self._all_rows + self._num_rows) / seconds if seconds > 0 else None
