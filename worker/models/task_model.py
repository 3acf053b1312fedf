"""The interface between engine and task: the methods encode, collate, forward and decode, run in different threads."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

from jobs.data.rows import Row, RowError, RowErrorCode


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as the model sees it, or the reason why the model cannot process it."""

    row: Row
    num_tokens: int
    """Number of tokens of this row, special tokens included; rows are sorted and packed by this length."""
    features: Any
    """What the task needs to compute the row, in a form that it defines; None if `error` is set."""
    error: RowError | None = None
    shape: Hashable = None
    """Only rows of equal shape share a batch. None if rows of any lengths may be padded together."""


@dataclass(frozen=True, slots=True)
class Counted:
    """An output with its number of tokens, for tasks that know it only after computing."""

    output: Any
    num_tokens: int


NOT_FINITE = RowError(
    RowErrorCode.NOT_A_NUMBER, "the model's output for this row is not a finite number; try dtype float32"
)
"""JSON cannot represent such numbers, and a vector with one of them is useless."""


class TaskModel(Protocol):
    """A loaded model with one job's parameters. Each method runs in one thread at a time, parallel to the others."""

    memory_bytes: int
    """Memory that weights and buffers take on the device."""

    def with_parameters(self, parameters: Any) -> Self:
        """Return the model with another job's parameters. This is cheap, since it shares everything that was loaded.

        The model cache ignores parameters when it looks up a warm model, so this is called for each lease.

        Args:
            parameters: The job's parameters, of the task's type in `jobs.specs.parameters`.

        Raises:
            InvalidSpec: The model does not take a parameter or its value; the message names it.
        """
        ...

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Turn rows into features, on the CPU.

        Args:
            rows: Rows without an error.

        Returns:
            One entry for each row, in order; a row that cannot be computed has an error.
        """
        ...

    def collate(self, batch: Sequence[Encoded]) -> Any:
        """Pad a batch into CPU tensors, in pinned memory if the model is on a GPU.

        Args:
            batch: Rows without errors, at least one.
        """
        ...

    def forward(self, collated: Any) -> Any:
        """Compute a batch on the device, under `torch.inference_mode`, without waiting for the device.

        Returns:
            Device tensors, reduced as far as possible on the device so that little is copied back.
        """
        ...

    def decode(self, batch: Sequence[Encoded], outputs: Any) -> list[Any]:
        """Turn what `forward` returned into outputs: JSON values in the pipeline's own shape, or float32 vectors.

        Args:
            batch: The rows that were passed to `collate`.
            outputs: What `forward` returned.

        Returns:
            One output for each row, in order, or a `RowError` for a row that has none. If `Encoded.num_tokens` was only
            an estimate, the outputs are `Counted`.
        """
        ...


class ComputationStopped(Exception):
    """What is being computed is not wanted any more."""


@runtime_checkable
class InFlight(Protocol):
    """A `TaskModel` that takes the rows of a whole chunk and decides at each step which ones are computed together."""

    token_bytes: int
    """Memory that one token takes while its row is being generated."""

    def forward_in_flight(self, collated: Any, *, max_tokens: int, max_rows: int, between: Callable[[], None]) -> Any:
        """Compute a batch; used instead of `TaskModel.forward`.

        Args:
            collated: What `collate` returned for all or some rows of a chunk.
            max_tokens: Most tokens of the rows that are generated together, each row counted as long as the longest.
            max_rows: Most rows that are generated together.
            between: Called before each forward pass; an exception that it raises (`ComputationStopped`) ends all rows.
        """
        ...


@runtime_checkable
class Closable(Protocol):
    """A `TaskModel` that holds resources that garbage collection does not free; closed once, before it is dropped."""

    def close(self) -> None:
        """Free these resources. Neither this model nor a copy with other parameters is used afterwards."""
        ...
