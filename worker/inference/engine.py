"""Run rows through one model in batches that fit: encode them, divide them into batches, compute and decode these."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.errors import MachineError, StokerError
from jobs.messages import one_line
from worker.device import is_out_of_memory, is_poisoned, side_stream, use_threads
from worker.inference.batch_computer import BatchComputer, BatchTools, GroupComputer
from worker.inference.budget import Budget
from worker.inference.chunks import Piece
from worker.inference.device_usage import DeviceUsage
from worker.inference.encoding import RowEncoder
from worker.inference.padding_verdicts import is_packed
from worker.models.batching import divide, divide_without_padding, padded_tokens, split_by_bytes
from worker.models.failures import plain_sentence
from worker.models.task_model import Encoded, InFlight, JoinsEqualParts, MayBeStateless, TaskModel

logger = logging.getLogger(__name__)

_HELD_BYTES = 256 * 2**20
"""Most memory of encoded rows that wait for others of their shape, and again of batches that wait for their group."""
_BATCHES_PER_THREAD = 4
"""Batches of a group for each one that is computed at the same time. All wait for the last one of their group."""
_LOGGED_FAILURES = 20
"""Number of row failures that are logged per lease; all of them are in the results."""


class InferenceEngine:
    """Runs rows through one model. Each stage of the pipeline calls one method, from its own thread."""

    def __init__(
        self,
        model: TaskModel,
        device: torch.device,
        budget: Budget,
        make_room: Callable[[], bool] = lambda: False,
        *,
        encode_threads: int = 1,
        num_threads: int = 1,
    ) -> None:
        """
        Args:
            model: The model, loaded on `device`.
            budget: Limits of a batch.
            make_room: Frees device memory that warm models hold; returns whether there was any to free.
            encode_threads: Number of threads that encode rows, for models whose rows are encoded one by one.
            num_threads: Number of CPU threads that compute.
        """
        self._model = model
        self.is_in_flight = isinstance(model, InFlight)
        """Whether the model takes whole chunks, in many forward passes each."""
        self._device = device
        self._budget = budget
        self._encoder = RowEncoder(model, num_threads=encode_threads, row_error=self._row_error)
        self._side = side_stream(device)
        # `decode` may have to run rows through the model again while the other threads process later batches.
        self._collate_lock = threading.Lock()
        self._num_threads = num_threads
        # Batches without padding put hooks into the model while it computes them.
        is_stateless = isinstance(model, MayBeStateless) and model.is_stateless and not is_packed(model)
        tools = BatchTools(
            device, budget, self._collated, self._pack_alike, self._num_tokens, self._row_error, make_room
        )
        most = num_threads if is_stateless and device.type == "cpu" else 1
        self._groups = GroupComputer(model, tools, num_threads=num_threads, most=most)
        # Beside the batches that the device computes: that one does not fit says nothing about its size.
        passing = Budget(budget.max_tokens, budget.max_rows, budget.batch_cost)
        self._again = BatchComputer(model, replace(tools, budget=passing, make_room=lambda: False))
        self._failures_logged = 0
        self.usage = DeviceUsage()

    # -- encoding thread

    def encode(self, rows: Sequence[Row], following: Callable[[], Sequence[Row]] = tuple) -> Iterator[Encoded]:
        """Encode the rows of a chunk; see `RowEncoder`."""
        return self._encoder.encode(rows, following)

    def batches(self, encoded: Iterable[Encoded]) -> Iterator[list[Encoded]]:
        """Divide the encoded rows of one chunk, in row order, into batches.

        Which rows share a batch depends only on these rows and on the budget that the lease started with. Rows whose
        features are large are computed early: a batch of equal shapes as soon as it is full, and all rows that are held
        back once they take `_HELD_BYTES`. An `InFlight` model gets all rows in one batch, or in several that each take
        `_HELD_BYTES`.
        """
        if self.is_in_flight:
            yield from split_by_bytes(encoded, lambda one: one.num_bytes, _HELD_BYTES)
            return
        held: dict[Hashable, list[Encoded]] = {}
        num_bytes = 0
        for one in encoded:
            alike = held.setdefault(one.shape, [])
            alike.append(one)
            num_bytes += one.num_bytes
            if one.shape is not None and len(alike) >= self._most_rows(one):
                yield held.pop(one.shape)
                num_bytes -= sum(member.num_bytes for member in alike)
            elif num_bytes > _HELD_BYTES:
                yield from self._divided(held.values(), self._budget.planned_tokens)
                held, num_bytes = {}, 0
        yield from self._divided(held.values(), self._budget.planned_tokens)

    def groups(self, encoded: Iterable[Encoded]) -> Iterator[list[list[Encoded]]]:
        """Divide the encoded rows of one chunk into `batches`, and these, in order, into groups.

        The groups depend on the same things as the batches, and on the number of threads.
        """
        at_once = self._groups.most * _BATCHES_PER_THREAD if self._groups.most > 1 else 1
        together: list[list[Encoded]] = []
        num_bytes = 0
        for batch in self.batches(encoded):
            together.append(batch)
            num_bytes += sum(one.num_bytes for one in batch)
            if len(together) == at_once or num_bytes > _HELD_BYTES:
                yield together
                together, num_bytes = [], 0
        if together:
            yield together

    def close_encoder(self) -> None:
        """End the threads that encode rows."""
        self._encoder.close()

    def close(self) -> None:
        """End all threads."""
        self._encoder.close()
        self._groups.close()

    def begin_thread(self) -> None:
        """Called first in each thread that calls other methods; see `use_threads`."""
        use_threads(self._num_threads)

    # -- collating thread

    def collate(self, members: Sequence[Encoded]) -> Any | None:
        """Make a batch's tensors ahead of its turn. Returns None if that fails; `compute` then finds the cause."""
        try:
            return self._collated(members)
        except Exception as error:  # noqa: BLE001 - raised again, and handled, when `compute` collates
            logger.debug("collating %d rows ahead failed: %s", len(members), one_line(error))
            return None

    # -- forward thread

    def compute(
        self, batches: Sequence[Sequence[Encoded]], collated: Sequence[Any | None], beat: Callable[[], None]
    ) -> list[Piece]:
        """Run the batches of a group through the model, in as many pieces as necessary.

        Args:
            batches: The batches of a group; only one, if the model is `InFlight`.
            collated: Their tensors, each None if it was not made ahead.
            beat: Called before each forward pass, perhaps from another thread; may raise `ComputationStopped`.

        Returns:
            Pieces that together contain each row once. On CUDA, the device may still be computing them.

        Raises:
            StokerError: The error does not concern a single row, such as a lost CUDA context.
            ComputationStopped: `beat` raised it.
        """
        return self._groups.compute(batches, collated, beat)

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work.

        Raises:
            MachineError: Work that was queued before has failed.
        """
        if self._device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            raise MachineError(f"the device failed and needs a new process: {one_line(error)}") from error

    # -- decoding thread

    def decode(self, piece: Piece) -> list[Any | RowError]:
        """Return one output or row error for each member of a piece, in order.

        Raises:
            StokerError: The error does not concern a single row.
        """
        if piece.error is not None or piece.started is None or piece.moment is None:
            return [piece.error] * len(piece.members)
        try:
            with piece.moment.after(self._side), torch.inference_mode():
                outputs = self._decoded(piece)
            seconds = piece.started.seconds_until(piece.moment) * piece.share
            self.usage.add(piece.members, seconds, None if self.is_in_flight else self._num_tokens(piece.members))
            return outputs
        except Exception as error:  # noqa: BLE001 - whatever decoding raises is searched for its row
            row_error = self._row_error(error)
        return self._decode_apart(piece.members, row_error)

    def _decode_apart(self, members: Sequence[Encoded], row_error: RowError) -> list[Any | RowError]:
        """Find the rows that fail to decode. Outputs cannot be split, so each half is run through the model again."""
        if len(members) == 1:
            return [row_error]
        middle = len(members) // 2
        outputs: dict[int, Any | RowError] = {}
        for half in (members[:middle], members[middle:]):
            for piece in self._again.compute(half, None, lambda: None):
                outputs.update(zip((one.row.row_index for one in piece.members), self.decode(piece), strict=True))
        return [outputs[one.row.row_index] for one in members]

    def _decoded(self, piece: Piece) -> list[Any]:
        outputs = self._model.decode(piece.members, piece.outputs)
        if len(outputs) != len(piece.members):
            raise ValueError(f"{len(piece.members)} rows were decoded to {len(outputs)} outputs")
        return outputs

    # -- what they share

    def _collated(self, members: Sequence[Encoded]) -> Any:
        with self._collate_lock:
            return self._model.collate(members)

    def _divided(self, alike: Iterable[Sequence[Encoded]], max_tokens: int) -> list[list[Encoded]]:
        """Divide rows, grouped by their shape, into batches of one shape each."""
        return [batch for members in alike for batch in self._pack_alike(members, max_tokens)]

    def _pack_alike(self, members: Sequence[Encoded], max_tokens: int) -> list[list[Encoded]]:
        members = sorted(members, key=lambda one: -one.seconds)  # `divide` keeps this order among equal lengths
        lengths, max_rows = [one.num_tokens for one in members], self._budget.max_rows
        if is_packed(self._model):
            pads_outputs = not isinstance(self._model, JoinsEqualParts)
            batches = divide_without_padding(
                lengths, max_tokens=max_tokens, max_rows=max_rows, pads_outputs=pads_outputs
            )
        else:
            batches = divide(lengths, max_tokens=max_tokens, max_rows=max_rows, batch_cost=self._budget.batch_cost)
        return [[members[position] for position in batch] for batch in batches]

    def _num_tokens(self, members: Sequence[Encoded]) -> int:
        """Number of tokens in a batch, with the padding that is computed."""
        lengths = [one.num_tokens for one in members]
        return sum(lengths) if is_packed(self._model) else padded_tokens(lengths)

    def _most_rows(self, one: Encoded) -> int:
        """Most rows of this row's shape, and so of its length, in a batch."""
        return max(1, min(self._budget.max_rows, self._budget.planned_tokens // max(1, one.num_tokens)))

    def _row_error(self, error: Exception) -> RowError:
        """The row error for a row that alone fails with `error`. Raises if the error is not about rows at all."""
        if isinstance(error, StokerError):
            raise error
        if is_out_of_memory(error):
            return RowError(RowErrorCode.OUT_OF_MEMORY, "this row alone does not fit in the device's memory")
        if is_poisoned(error):
            raise MachineError(f"the device failed and needs a new process: {one_line(error)}") from error
        if self._failures_logged < _LOGGED_FAILURES:
            self._failures_logged += 1
            logger.warning(
                "a batch failed; its rows are computed in smaller batches to find the cause: %s", one_line(error)
            )
        return RowError(RowErrorCode.ROW_FAILED, plain_sentence(error))
