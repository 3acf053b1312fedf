"""Totals of what a lease has computed on its device: time and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worker.models.task_model import Encoded


@dataclass(slots=True)
class DeviceUsage:
    """What a device has computed. Only the decoding thread changes it."""

    seconds: float = 0.0
    """Time in which the device computed."""
    num_tokens: int = 0
    """Tokens of rows, without the padding."""
    num_padded_tokens: int = 0
    """Tokens of the batches of these rows, padding included."""

    def add(self, members: Sequence[Encoded], seconds: float, num_padded: int | None) -> None:
        """Count a forward pass.

        Args:
            members: The rows of its batch.
            seconds: Time that it took.
            num_padded: Number of tokens in the batch, padding included; None if the batch changed during the pass.
        """
        self.seconds += seconds
        if num_padded is not None:
            self.num_tokens += sum(one.num_tokens for one in members)
            self.num_padded_tokens += num_padded
