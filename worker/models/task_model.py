"""What the engine asks of a task: encode, collate, forward, decode, in four methods that run in three threads."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

from jobs.data.rows import Row, RowError, RowErrorCode


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as the model will see it, or the reason why it cannot."""

    row: Row
    num_tokens: int
    """Tokens the model sees of this row, special ones counted; the length that rows are sorted and packed by."""
    features: Any
    """The task's own; None where `error` is set."""
    error: RowError | None = None
    shape: Hashable = None
    """Only rows of equal shape are computed in one batch; None where rows of any lengths may be padded together."""


@dataclass(frozen=True, slots=True)
class Counted:
    """An output with the tokens that the model saw for it, where they were not known before it was computed."""

    output: Any
    num_tokens: int


NOT_FINITE = RowError(
    RowErrorCode.NOT_A_NUMBER, "the model's output for this row is not a finite number; try dtype float32"
)
"""JSON has no such numbers, and a vector with one of them is useless."""


class TaskModel(Protocol):
    """A loaded model with one job's parameters. Each method runs in one thread at a time, beside the others."""

    memory_bytes: int
    """Weights and buffers, as they lie on the device."""

    def with_parameters(self, parameters: Any) -> Self:
        """The same weights with another job's parameters; cheap, shares everything that was loaded.

        A warm model is found by task, name and dtype only, so this is called for each lease.

        Args:
            parameters: The job's, of the task's own type in `jobs.specs.parameters`.

        Raises:
            InvalidSpec: The model does not take a parameter or its value; the message names it.
        """
        ...

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Turn rows into features, on the CPU.

        Args:
            rows: without those that carry an error already.

        Returns:
            One for each row, in order; those that cannot be computed carry an error.
        """
        ...

    def collate(self, batch: Sequence[Encoded]) -> Any:
        """Pad a batch into CPU tensors, pinned where the model is on a GPU.

        Args:
            batch: rows without errors, at least one.
        """
        ...

    def forward(self, collated: Any) -> Any:
        """Compute a batch on the device, under `torch.inference_mode`; nothing in it waits for the device.

        Returns:
            Device tensors, reduced as far as the device can so that little is copied back.
        """
        ...

    def decode(self, batch: Sequence[Encoded], outputs: Any) -> list[Any]:
        """Turn what `forward` returned into outputs: JSON values in the pipeline's own shape, or float32 vectors.

        Args:
            batch: as given to `collate`.
            outputs: as `forward` returned them.

        Returns:
            One for each row of the batch, in order; a `RowError` for a row that alone came to nothing. Where
            `Encoded.num_tokens` was a guess, `Counted`.
        """
        ...


class ComputationStopped(Exception):
    """What is being computed is not wanted any more."""


@runtime_checkable
class InFlight(Protocol):
    """A `TaskModel` that takes the rows of a whole chunk and decides from step to step which are computed together."""

    token_bytes: int
    """Memory that one token of a row takes for as long as the row is at work."""

    def forward_in_flight(self, collated: Any, *, max_tokens: int, max_rows: int, between: Callable[[], None]) -> Any:
        """In place of `TaskModel.forward`.

        Args:
            collated: of all rows of a chunk, or of some.
            max_tokens: of the rows at work at once, counted as padded to the longest.
            max_rows: most rows at work at once.
            between: called before each forward pass; what it raises (`ComputationStopped`, say) ends all of them.
        """
        ...


@runtime_checkable
class Closable(Protocol):
    """A `TaskModel` that may hold what dropping it does not give back; closed once, before it is dropped."""

    def close(self) -> None:
        """Give it back. Nothing is computed with this model any more, nor with another's parameters on its weights."""
        ...
