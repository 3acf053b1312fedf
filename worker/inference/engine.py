"""Run rows through one model in batches that fit, so that an error of one row does not affect another.

After an out-of-memory, the same rows are computed again in smaller batches, and the size that fits is remembered. After
any other exception, the batch is halved repeatedly until the row that raises it is found; that row becomes a row error.
Errors that concern more than one row (user errors, machine errors, a lost CUDA context) are raised to the caller.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.errors import MachineError, StokerError
from worker.device import Moment, is_out_of_memory, is_poisoned, one_line, release_memory, side_stream
from worker.inference.budget import Budget
from worker.inference.chunks import Piece
from worker.models.batching import pack, padded_tokens
from worker.models.failures import plain_sentence
from worker.models.task_model import ComputationStopped, Encoded, InFlight, TaskModel

logger = logging.getLogger(__name__)

_LOGGED_FAILURES = 20
"""Number of row failures that are logged per lease; all of them are in the results."""


class InferenceEngine:
    """Runs rows through one model. Each stage of the pipeline calls one method, from its own thread."""

    def __init__(
        self, model: TaskModel, device: torch.device, budget: Budget, make_room: Callable[[], bool] = lambda: False
    ) -> None:
        """
        Args:
            model: The model, loaded on `device`.
            budget: Limits of a batch.
            make_room: Frees device memory that warm models hold; returns whether there was any to free.
        """
        self._model = model
        self._in_flight = model if isinstance(model, InFlight) else None
        self._device = device
        self._budget = budget
        self._make_room = make_room
        self._side = side_stream(device)
        # `decode` may have to run rows through the model again while the other threads process later batches.
        self._collate_lock = threading.Lock()
        self._forward_lock = threading.Lock()
        self._failures_logged = 0

    @property
    def is_in_flight(self) -> bool:
        """Whether the model takes whole chunks, in many forward passes each."""
        return self._in_flight is not None

    # -- tokenizer thread

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Tokenize rows. A row that cannot be tokenized gets an error.

        Raises:
            StokerError: The error does not concern a single row.
        """
        if not rows:
            return []
        try:
            encoded = self._model.encode(rows)
            if len(encoded) == len(rows):
                return encoded
            raise ValueError(f"{len(rows)} rows were encoded to {len(encoded)}")
        except Exception as error:  # noqa: BLE001 - whatever a tokenizer raises is the row's error
            verdict = self._row_error(error)
        if len(rows) == 1:
            return [Encoded(row=rows[0], num_tokens=0, features=None, error=verdict)]
        middle = len(rows) // 2
        return [*self.encode(rows[:middle]), *self.encode(rows[middle:])]

    # -- collating thread

    def batches(self, encoded: Sequence[Encoded]) -> list[list[Encoded]]:
        """Pack the rows of one chunk; depends only on their lengths and the budget that the lease started with.

        An `InFlight` model gets all of them in one batch.
        """
        if self.is_in_flight:
            return [list(encoded)] if encoded else []
        return self._pack(encoded, self._budget.planned_tokens)

    def collate(self, members: Sequence[Encoded]) -> Any | None:
        """Make a batch's tensors ahead of its turn. Returns None if that fails; `compute` then finds the cause."""
        try:
            with self._collate_lock:
                return self._model.collate(members)
        except Exception as error:  # noqa: BLE001 - raised again, and handled, when `compute` collates
            logger.debug("collating %d rows ahead failed: %s", len(members), one_line(error))
            return None

    # -- forward thread

    def compute(self, members: Sequence[Encoded], collated: Any | None, beat: Callable[[], None]) -> list[Piece]:
        """Run a batch through the model, in as many pieces as necessary.

        Args:
            collated: The batch's tensors, if they were made ahead.
            beat: Called before each forward pass; may raise `ComputationStopped`.

        Returns:
            Pieces that together contain each member once. On CUDA, the device may still be computing them.

        Raises:
            StokerError: The error does not concern a single row, such as a lost CUDA context.
            ComputationStopped: `beat` raised it.
        """
        is_larger = padded_tokens([one.num_tokens for one in members]) > self._budget.max_tokens
        if len(members) > 1 and is_larger and not self.is_in_flight:
            return self._in_parts(self._pack(members, self._budget.max_tokens), beat)
        try:
            beat()
            return [self._forward(members, collated, beat)]
        except ComputationStopped:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises is searched for its row
            verdict = self._row_error(error)
            out_of_memory = is_out_of_memory(error)
        # Outside the except block, since the exception's frames hold the tensors that must be freed.
        collated = None
        if out_of_memory:
            return self._compute_smaller(members, verdict, beat)
        if len(members) == 1:
            return [Piece(members, None, None, verdict)]
        middle = len(members) // 2
        return self._in_parts([members[:middle], members[middle:]], beat)

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

    def _compute_smaller(self, members: Sequence[Encoded], verdict: RowError, beat: Callable[[], None]) -> list[Piece]:
        freed = self._make_room()
        release_memory(self._device)
        if len(members) == 1 or freed:
            try:
                beat()
                return [self._forward(members, None, beat)]
            except ComputationStopped:
                raise
            except Exception as error:  # noqa: BLE001 - as in `compute`
                verdict = self._row_error(error)
                if not is_out_of_memory(error) and len(members) == 1:
                    return [Piece(members, None, None, verdict)]
            release_memory(self._device)
        if len(members) == 1:
            return [Piece(members, None, None, verdict)]
        tried = padded_tokens([one.num_tokens for one in members])
        if self.is_in_flight:
            tried = min(tried, self._budget.max_tokens)  # the other rows were not being computed
        half = tried // 2
        pieces = self._in_parts(self._pack(members, half), beat)
        # If a single row did not fit by itself, the row is the cause and not the size of its batch.
        if not any(piece.error is not None and piece.error.code == RowErrorCode.OUT_OF_MEMORY for piece in pieces):
            self._budget.lower(half)
        return pieces

    def _in_parts(self, parts: Sequence[Sequence[Encoded]], beat: Callable[[], None]) -> list[Piece]:
        return [piece for part in parts for piece in self.compute(part, None, beat)]

    def _forward(self, members: Sequence[Encoded], collated: Any | None, beat: Callable[[], None]) -> Piece:
        if collated is None:
            with self._collate_lock:
                collated = self._model.collate(members)
        with self._forward_lock, torch.inference_mode():
            if self._in_flight is None:
                outputs = self._model.forward(collated)
            else:
                outputs = self._in_flight.forward_in_flight(
                    collated, max_tokens=self._budget.max_tokens, max_rows=self._budget.max_rows, between=beat
                )
            return Piece(members, outputs, Moment(self._device))

    # -- decoding thread

    def decode(self, piece: Piece) -> list[Any | RowError]:
        """Return one output or row error for each member of a piece, in order.

        Raises:
            StokerError: The error does not concern a single row.
        """
        if piece.error is not None or piece.moment is None:
            return [piece.error] * len(piece.members)
        try:
            with piece.moment.after(self._side), torch.inference_mode():
                return self._decoded(piece)
        except Exception as error:  # noqa: BLE001 - whatever decoding raises is searched for its row
            verdict = self._row_error(error)
        return self._decode_apart(piece.members, verdict)

    def _decode_apart(self, members: Sequence[Encoded], verdict: RowError) -> list[Any | RowError]:
        """Find the rows that fail to decode. Outputs cannot be split, so each half is run through the model again."""
        if len(members) == 1:
            return [verdict]
        middle = len(members) // 2
        outputs: list[Any | RowError] = []
        for half in (members[:middle], members[middle:]):
            try:
                with torch.inference_mode():
                    outputs += self._decoded(self._forward(half, None, lambda: None))
            except Exception as error:  # noqa: BLE001 - the search continues inside this half
                verdict = self._row_error(error)
            else:
                continue
            outputs += self._decode_apart(half, verdict)
        return outputs

    def _decoded(self, piece: Piece) -> list[Any]:
        outputs = self._model.decode(piece.members, piece.outputs)
        if len(outputs) != len(piece.members):
            raise ValueError(f"{len(piece.members)} rows were decoded to {len(outputs)} outputs")
        return outputs

    # -- what they share

    def _pack(self, members: Sequence[Encoded], max_tokens: int) -> list[list[Encoded]]:
        by_shape: dict[Hashable, list[Encoded]] = {}
        for one in members:
            by_shape.setdefault(one.shape, []).append(one)
        return [batch for alike in by_shape.values() for batch in self._pack_alike(alike, max_tokens)]

    def _pack_alike(self, members: Sequence[Encoded], max_tokens: int) -> list[list[Encoded]]:
        lengths = [one.num_tokens for one in members]
        packed = pack(
            lengths, max_tokens=max_tokens, max_rows=self._budget.max_rows, batch_cost=self._budget.batch_cost
        )
        return [[members[position] for position in batch] for batch in packed]

    def _row_error(self, error: Exception) -> RowError:
        """The row error for a row that alone fails with `error`. Raises if the error is not about rows at all."""
        if isinstance(error, StokerError):
            raise error
        if is_out_of_memory(error):
            return RowError(RowErrorCode.OUT_OF_MEMORY, "this row alone does not fit into the device's memory")
        if is_poisoned(error):
            raise MachineError(f"the device failed and needs a new process: {one_line(error)}") from error
        if self._failures_logged < _LOGGED_FAILURES:
            self._failures_logged += 1
            logger.warning("a batch failed and is searched for the row that causes it: %s", one_line(error))
        return RowError(RowErrorCode.ROW_FAILED, plain_sentence(error))
