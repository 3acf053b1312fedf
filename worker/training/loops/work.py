"""The interface between `Steps` and the two training loops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch


class Work(Protocol):
    """What `Steps` needs from the loop that computes. Unless noted, all ranks call each method at the same step."""

    def run_evaluation(self) -> Mapping[str, float]:
        """Evaluate the present weights, and return metrics whose names begin with `eval_`."""
        ...

    def write_checkpoint(self, folder: Path) -> None:
        """Write all that the next step needs: the leader writes what all ranks share, and each rank its own state."""
        ...

    def write_weights(self, folder: Path) -> None:
        """Write the weights alone, into a folder that this method makes. Called on the leader only."""
        ...

    def load_weights(self, folder: Path) -> None:
        """Load what `write_weights` wrote. Called on the leader only."""
        ...

    def learned(self) -> Iterable[torch.Tensor]:
        """Return the trainable weights."""
        ...
