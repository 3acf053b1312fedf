"""Run rows through one model in batches that fit, so that an error of one row does not affect another.

After an out-of-memory, the same rows are computed again in smaller batches, and the size that fits is remembered. After
any other exception, the batch is halved repeatedly until the row that raises it is found; that row becomes a row error.
Errors that concern more than one row (user errors, machine errors, a lost CUDA context) are raised to the caller.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch

from jobs.data.rows import Row, RowError, RowErrorCode
from jobs.errors import MachineError, StokerError
from jobs.messages import one_line
from worker.device import Moment, is_out_of_memory, is_poisoned, release_memory, side_stream
from worker.inference.budget import Budget
from worker.inference.chunks import Piece
from worker.inference.device_usage import DeviceUsage
from worker.inference.encoding import RowEncoder
from worker.inference.padding_verdicts import is_packed
from worker.models.batching import divide, divide_without_padding, padded_tokens, split_by_bytes
from worker.models.failures import plain_sentence
from worker.models.task_model import (
    ComputationStopped,
    Encoded,
    InFlight,
    JoinsEqualParts,
    TaskModel,
    before_each_call,
)

logger = logging.getLogger(__name__)

_HELD_BYTES = 256 * 2**20
"""Most memory of encoded rows that wait for others of their shape."""
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
    ) -> None:
        """
        Args:
            model: The model, loaded on `device`.
            budget: Limits of a batch.
            make_room: Frees device memory that warm models hold; returns whether there was any to free.
            encode_threads: Number of threads that encode rows, for models whose rows are encoded one by one.
        """
        self._model = model
        self._in_flight = model if isinstance(model, InFlight) else None
        self._device = device
        self._budget = budget
        self._make_room = make_room
        self._encoder = RowEncoder(model, num_threads=encode_threads, row_error=self._row_error)
        self._side = side_stream(device)
        # `decode` may have to run rows through the model again while the other threads process later batches.
        self._collate_lock = threading.Lock()
        self._forward_lock = threading.Lock()
        self._failures_logged = 0
        self.usage = DeviceUsage()

    @property
    def is_in_flight(self) -> bool:
        """Whether the model takes whole chunks, in many forward passes each."""
        return self._in_flight is not None

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

    def close(self) -> None:
        """End the threads that encode rows."""
        self._encoder.close()

    # -- collating thread

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
        is_larger = self._num_tokens(members) > self._budget.max_tokens
        if len(members) > 1 and is_larger and not self.is_in_flight:
            return self._in_parts(self._pack_alike(members, self._budget.max_tokens), beat)
        try:
            beat()
            return [self._forward(members, collated, beat)]
        except ComputationStopped:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises is searched for its row
            row_error = self._row_error(error)
            out_of_memory = is_out_of_memory(error)
        # Outside the except block, since the exception's frames hold the tensors that must be freed.
        collated = None
        if out_of_memory:
            return self._compute_smaller(members, row_error, beat)
        return self._compute_halves(members, row_error, beat)

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

    def _compute_halves(self, members: Sequence[Encoded], row_error: RowError, beat: Callable[[], None]) -> list[Piece]:
        """Find the rows that fail; `row_error` is the error if there is only one row."""
        if len(members) == 1:
            return [Piece(members, None, error=row_error)]
        middle = len(members) // 2
        return self._in_parts([members[:middle], members[middle:]], beat)

    def _compute_smaller(
        self, members: Sequence[Encoded], row_error: RowError, beat: Callable[[], None]
    ) -> list[Piece]:
        """Compute rows that did not fit in memory: at once if room can be made, else in smaller batches."""
        freed = self._make_room()
        release_memory(self._device)
        if len(members) == 1 or freed:
            try:
                beat()
                return [self._forward(members, None, beat)]
            except ComputationStopped:
                raise
            except Exception as error:  # noqa: BLE001 - as in `compute`
                row_error = self._row_error(error)
                out_of_memory = is_out_of_memory(error)
            release_memory(self._device)
            if not out_of_memory:  # the rows fit now, so the size of batches can stay
                return self._compute_halves(members, row_error, beat)
        if len(members) == 1:
            return [Piece(members, None, error=row_error)]
        tried = self._num_tokens(members)
        if self.is_in_flight:
            tried = min(tried, self._budget.max_tokens)  # the other rows were not being computed
        half = tried // 2
        pieces = self._in_parts(self._pack_alike(members, half), beat)
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
            started = Moment(self._device)
            if self._in_flight is None:
                with before_each_call(self._model, beat):
                    outputs = self._model.forward(collated)
            else:
                outputs = self._in_flight.forward_in_flight(
                    collated, max_tokens=self._budget.max_tokens, max_rows=self._budget.max_rows, between=beat
                )
            return Piece(members, outputs, started, Moment(self._device))

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
            seconds = piece.started.seconds_until(piece.moment)
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
        outputs: list[Any | RowError] = []
        for half in (members[:middle], members[middle:]):
            try:
                with torch.inference_mode():
                    outputs += self._decoded(self._forward(half, None, lambda: None))
            except Exception as error:  # noqa: BLE001 - the search continues inside this half
                row_error = self._row_error(error)
            else:
                continue
            outputs += self._decode_apart(half, row_error)
        return outputs

    def _decoded(self, piece: Piece) -> list[Any]:
        outputs = self._model.decode(piece.members, piece.outputs)
        if len(outputs) != len(piece.members):
            raise ValueError(f"{len(piece.members)} rows were decoded to {len(outputs)} outputs")
        return outputs

    # -- what they share

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
