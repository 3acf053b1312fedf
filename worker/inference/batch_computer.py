"""Compute batches, so that an error of one row does not affect another; on CPUs, several batches at the same time.

A CPU computes several small batches sooner on one thread each than one after the other on all threads: the threads of
one operation wait for each other at its end, and Python's own work between two operations uses one core. Measured with
MiniLM over docstrings on two cores: 1.2 times as many rows. (A ViT gained nothing, and wav2vec 2.0 lost a seventh.)

How many threads compute a batch changes the last bits of its outputs. So it depends only on the number of batches in a
group and on the slot's number of threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from jobs.data.rows import RowError, RowErrorCode
from worker.device import Moment, is_out_of_memory, release_memory, use_threads
from worker.inference.budget import Budget
from worker.inference.chunks import Piece
from worker.models.task_model import ComputationStopped, Encoded, InFlight, TaskModel, before_each_call

Batch = Sequence[Encoded]
"""Rows that are computed in one forward pass."""


@dataclass(frozen=True, slots=True)
class BatchTools:
    """What the threads that compute batches share."""

    device: torch.device
    budget: Budget
    collate: Callable[[Batch], Any]
    """Makes the tensors of a batch; safe to call from several threads."""
    divide: Callable[[Batch, int], Sequence[Batch]]
    """Divides rows of one shape into batches of at most so many tokens."""
    num_tokens: Callable[[Batch], int]
    """Number of tokens in a batch, with the padding that is computed."""
    row_error: Callable[[Exception], RowError]
    """The row error for a row that alone fails with an exception; raises if the exception does not concern a row."""
    make_room: Callable[[], bool]
    """Frees device memory that warm models hold; returns whether there was any to free."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the model computes, unless several threads may use it at the same time."""


class _NeedsMemory(Exception):
    """A batch did not fit in memory beside those of other threads."""


class BatchComputer:
    """Computes one batch after the other.

    After an out-of-memory, the same rows are computed again in smaller batches, and the size that fits is remembered.
    After any other exception, the batch is halved repeatedly until the row that raises it is found; that row becomes a
    row error. Errors that concern more than one row (user errors, machine errors, a lost CUDA context) are raised.
    """

    def __init__(self, model: TaskModel, tools: BatchTools, *, others_compute: bool = False) -> None:
        """
        Args:
            model: The model.
            tools: What it computes with.
            others_compute: Whether other threads compute batches, which may hold the memory that one lacks. Such a
                batch raises `_NeedsMemory`.
        """
        self._model = model
        self._in_flight = model if isinstance(model, InFlight) else None
        self._tools = tools
        self._others_compute = others_compute

    def compute(self, members: Batch, collated: Any | None, beat: Callable[[], None]) -> list[Piece]:
        """Run a batch through the model, in as many pieces as necessary; see `InferenceEngine.compute`."""
        budget = self._tools.budget
        is_larger = self._tools.num_tokens(members) > budget.max_tokens
        if len(members) > 1 and is_larger and self._in_flight is None:
            return self._in_parts(self._tools.divide(members, budget.max_tokens), beat)
        try:
            beat()
            return [self._forward(members, collated, beat)]
        except ComputationStopped:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises is searched for its row
            row_error = self._tools.row_error(error)
            out_of_memory = is_out_of_memory(error)
        # Outside the except block, since the exception's frames hold the tensors that must be freed.
        collated = None
        if out_of_memory and self._others_compute:
            raise _NeedsMemory
        if out_of_memory:
            return self._compute_smaller(members, row_error, beat)
        return self._compute_halves(members, row_error, beat)

    def _forward(self, members: Batch, collated: Any | None, beat: Callable[[], None]) -> Piece:
        """Run a batch through the model as it is. Raises whatever the model raises."""
        if collated is None:
            collated = self._tools.collate(members)
        device, budget = self._tools.device, self._tools.budget
        with nullcontext() if self._others_compute else self._tools.lock, torch.inference_mode():
            started = Moment(device)
            if self._others_compute:
                outputs = self._model.forward(collated)
            elif self._in_flight is None:
                with before_each_call(self._model, beat):
                    outputs = self._model.forward(collated)
            else:
                outputs = self._in_flight.forward_in_flight(
                    collated, max_tokens=budget.max_tokens, max_rows=budget.max_rows, between=beat
                )
            return Piece(members, outputs, started, Moment(device))

    def _compute_halves(self, members: Batch, row_error: RowError, beat: Callable[[], None]) -> list[Piece]:
        """Find the rows that fail; `row_error` is the error if there is only one row."""
        if len(members) == 1:
            return [Piece(members, None, error=row_error)]
        middle = len(members) // 2
        return self._in_parts([members[:middle], members[middle:]], beat)

    def _compute_smaller(self, members: Batch, row_error: RowError, beat: Callable[[], None]) -> list[Piece]:
        """Compute rows that did not fit in memory: at once if room can be made, else in smaller batches."""
        freed = self._tools.make_room()
        release_memory(self._tools.device)
        if len(members) == 1 or freed:
            try:
                beat()
                return [self._forward(members, None, beat)]
            except ComputationStopped:
                raise
            except Exception as error:  # noqa: BLE001 - as in `compute`
                row_error = self._tools.row_error(error)
                out_of_memory = is_out_of_memory(error)
            release_memory(self._tools.device)
            if not out_of_memory:  # the rows fit now, so the size of batches can stay
                return self._compute_halves(members, row_error, beat)
        if len(members) == 1:
            return [Piece(members, None, error=row_error)]
        tried, budget = self._tools.num_tokens(members), self._tools.budget
        if self._in_flight is not None:
            tried = min(tried, budget.max_tokens)  # the other rows were not being computed
        half = tried // 2
        pieces = self._in_parts(self._tools.divide(members, half), beat)
        # If a single row did not fit by itself, the row is the cause and not the size of its batch.
        if not any(piece.error is not None and piece.error.code == RowErrorCode.OUT_OF_MEMORY for piece in pieces):
            budget.lower(half)
        return pieces

    def _in_parts(self, parts: Sequence[Batch], beat: Callable[[], None]) -> list[Piece]:
        return [piece for part in parts for piece in self.compute(part, None, beat)]


class GroupComputer:
    """Computes the batches of a group, several at the same time if the model permits."""

    def __init__(self, model: TaskModel, tools: BatchTools, *, num_threads: int, most: int) -> None:
        """
        Args:
            model: The model.
            tools: What batches are computed with.
            num_threads: Number of CPU threads that compute.
            most: Most batches that are computed at the same time, each with some of the threads.
        """
        self._alone = BatchComputer(model, tools)
        self._beside = BatchComputer(model, tools, others_compute=True)
        self._num_threads = num_threads
        self._tools = tools
        self.most = most
        self._pool = ThreadPoolExecutor(self.most, "compute") if self.most > 1 else None

    def compute(
        self, batches: Sequence[Batch], collated: Sequence[Any | None], beat: Callable[[], None]
    ) -> list[Piece]:
        """Compute the batches of a group; see `InferenceEngine.compute`."""
        # A divisor, so that no thread is left over.
        at_once = max(number for number in range(1, self.most + 1) if self._is_fitting(number, len(batches)))
        if self._pool is None or at_once == 1:
            each = zip(batches, collated, strict=True)
            return [piece for batch, tensors in each for piece in self._alone.compute(batch, tensors, beat)]
        # A row with very many inputs takes many calls of the model, and gets all threads.
        planned = self._tools.budget.planned_tokens
        later = [number for number, batch in enumerate(batches) if self._tools.num_tokens(batch) > planned]
        waiting = deque(number for number in range(len(batches)) if number not in later)
        pieces: dict[int, list[Piece]] = {}

        def work() -> None:
            use_threads(self._num_threads // at_once)
            while waiting:
                try:
                    number = waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                try:
                    pieces[number] = self._beside.compute(batches[number], collated[number], beat)
                except _NeedsMemory:
                    later.append(number)
                except BaseException:
                    waiting.clear()
                    raise

        started = time.perf_counter()
        errors = [future.exception() for future in [self._pool.submit(work) for _ in range(at_once)]]
        seconds = time.perf_counter() - started
        for error in errors:
            if error is not None:
                raise error
        of_all = sum(_seconds(piece) for found in pieces.values() for piece in found)
        for number, found in pieces.items():
            pieces[number] = [replace(piece, share=seconds / of_all if of_all else 1.0) for piece in found]
        for number in sorted(later):
            pieces[number] = self._alone.compute(batches[number], None, beat)
        return [piece for number in range(len(batches)) for piece in pieces[number]]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _is_fitting(self, at_once: int, num_batches: int) -> bool:
        return at_once <= max(1, num_batches) and self._num_threads % at_once == 0


def _seconds(piece: Piece) -> float:
    return 0.0 if piece.started is None or piece.moment is None else piece.started.seconds_until(piece.moment)
