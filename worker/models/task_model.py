"""The interface between engine and task: the methods encode, collate, forward and decode, run in different threads."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from jobs.data.rows import Row, RowError, RowErrorCode

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    num_bytes: int = 0
    """Memory that the features take, if they are large: those of images, sounds and videos."""
    seconds: float = 0.0
    """Duration of the sound, if the longest one of a batch determines how many steps the batch takes, whatever the
    tensors' shapes. Rows of equal `num_tokens` are sorted by it, so that similar ones share a batch."""


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
    """A loaded model with one job's parameters. Each method runs in one thread at a time, parallel to the others.

    Only the `forward` of a `MayBeStateless` model may run in several threads at the same time.
    """

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


@runtime_checkable
class EncodesRowByRow(Protocol):
    """A `TaskModel` whose rows are expensive to encode, such as images, so that several threads encode them."""

    def for_thread(self, number: int) -> TaskModel:
        """A copy for one of several threads that encode at the same time; cheap if that thread had one before.

        Args:
            number: Number of the thread, from 0.
        """
        ...


@runtime_checkable
class MayBeStateless(Protocol):
    """A `TaskModel` whose `forward` may run in several threads at the same time, if its model keeps nothing."""

    is_stateless: bool
    """Whether that is so for this model."""


@runtime_checkable
class HasModel(Protocol):
    """A `TaskModel` whose `forward` may call its model many times, such as once for each token that is generated."""

    model: PreTrainedModel


def before_each_call(task_model: TaskModel, action: Callable[[], None]) -> AbstractContextManager[object]:
    """Inside the block, call `action` before each call of a `HasModel`'s model."""
    if not isinstance(task_model, HasModel):
        return nullcontext()
    handle: AbstractContextManager[object] = task_model.model.register_forward_pre_hook(lambda *_: action())
    return handle


@runtime_checkable
class JoinsEqualParts(Protocol):
    """A `TaskModel` whose rows may have several parts, of which it joins those of equal shapes."""

    pads_nothing: bool
    """Whether rows of any lengths share a batch without padding."""
    generates: bool
    """Whether a batch takes many forward passes, one for each token that is generated."""


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
