"""The exact loss of each step, kept on the device until somebody asks: a look at each step would stop a GPU."""

from __future__ import annotations

import math
import time

import torch

Point = tuple[int, str, float]
"""(step, name, value)."""


class Losses:
    """Collects losses, and measures how fast rows go by; time that goes elsewhere can be left out."""

    def __init__(self) -> None:
        self._of_step: torch.Tensor | None = None
        self._steps: list[tuple[int, torch.Tensor]] = []
        self._since: float | None = None
        self._num_rows, self._seconds = 0, 0.0
        self._all_rows, self._all_seconds = 0, 0.0
        self.latest = math.nan
        """That of the last step that was fetched."""

    def add(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's part of the step's loss."""
        loss = loss.detach()
        self._of_step = loss if self._of_step is None else self._of_step + loss

    def end_step(self, step: int, num_rows: int) -> None:
        """Close a step; the time since the one before was spent on its rows."""
        assert self._of_step is not None
        self._steps.append((step, self._of_step))
        self._of_step = None
        if self._since is not None:  # the first step brings with it what is loaded on first use
            self._num_rows += num_rows
            self._seconds += time.monotonic() - self._since
        self._since = time.monotonic()

    def skip_time(self) -> None:
        """Leave out the time since the last step's end: it went into an evaluation or a checkpoint."""
        if self._since is not None:
            self._since = time.monotonic()

    def take(self) -> list[Point]:
        """The losses since the last call, fetched from the device together."""
        if not self._steps:
            return []
        values = torch.stack([loss for _, loss in self._steps]).double().tolist()
        points = [(step, "loss", value) for (step, _), value in zip(self._steps, values, strict=True)]
        self.latest, self._steps = values[-1], []
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
