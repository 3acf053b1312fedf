"""Rows are encoded in order, several at a time where each is expensive, and a row that fails is a row error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import pytest

from jobs.data.rows import Row, RowError
from jobs.errors import ServiceUnavailable
from tests.support.scripted_model import ScriptedModel
from worker.inference.encoding import RowEncoder
from worker.models.task_model import Encoded

ROWS = [Row(index, None, {"text": f"row {index}"}) for index in range(20)]


class RowByRow(ScriptedModel):
    """A model whose rows are encoded one by one; its copies share the hook and note which of them encoded a row."""

    def __init__(self, copies: list[RowByRow] | None = None) -> None:
        super().__init__()
        self.copies = [] if copies is None else copies
        self.encoded_in: set[int] = set()

    def for_thread(self, number: int) -> RowByRow:
        copy = RowByRow(self.copies)
        copy.on_encode = self.on_encode
        self.copies.append(copy)
        return copy

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        assert len(rows) == 1
        self.encoded_in.add(threading.get_ident())
        return super().encode(rows)


def row_error(error: Exception) -> RowError:
    """As the engine converts it."""
    if isinstance(error, ServiceUnavailable):
        raise error
    return RowError("row_failed", str(error))


@pytest.fixture
def encoder_of() -> Iterator[Callable[[ScriptedModel], RowEncoder]]:
    """Makes encoders of two threads, and closes them."""
    made: list[RowEncoder] = []

    def make(model: ScriptedModel) -> RowEncoder:
        made.append(RowEncoder(model, num_threads=2, row_error=row_error))
        return made[-1]

    yield make
    for encoder in made:
        encoder.close()


def test_two_rows_are_encoded_at_once_each_by_its_own_copy(encoder_of: Callable[[ScriptedModel], RowEncoder]) -> None:
    model = RowByRow()
    both = threading.Barrier(2)

    def meet(rows: Sequence[Row]) -> None:
        both.wait(300)  # passes only if two threads encode at the same time

    model.on_encode = meet
    encoded = list(encoder_of(model).encode(ROWS))
    assert [one.row.row_index for one in encoded] == list(range(20))
    assert len(model.copies) == 2
    assert all(len(copy.encoded_in) == 1 for copy in model.copies)
    assert model.encoded_in == set()


def test_a_row_that_fails_in_a_thread_is_its_own_error(encoder_of: Callable[[ScriptedModel], RowEncoder]) -> None:
    def choke(rows: Sequence[Row]) -> None:
        if rows[0].row_index == 7:
            raise TypeError("no such thing")

    model = RowByRow()
    model.on_encode = choke
    encoded = list(encoder_of(model).encode(ROWS))
    assert [one.row.row_index for one in encoded if one.error is not None] == [7]
    assert encoded[7].error == RowError("row_failed", "no such thing")


def test_an_error_while_copying_the_model_ends_the_chunk(encoder_of: Callable[[ScriptedModel], RowEncoder]) -> None:
    class Uncopyable(RowByRow):
        def for_thread(self, number: int) -> RowByRow:
            raise MemoryError("no room for a copy")

    with pytest.raises(MemoryError, match="no room for a copy"):
        list(encoder_of(Uncopyable()).encode(ROWS))


def test_an_error_that_is_not_the_rows_ends_the_chunk(encoder_of: Callable[[ScriptedModel], RowEncoder]) -> None:
    def fail(rows: Sequence[Row]) -> None:
        if rows[0].row_index == 7:
            raise ServiceUnavailable("the store is gone")

    model = RowByRow()
    model.on_encode = fail
    with pytest.raises(ServiceUnavailable):
        list(encoder_of(model).encode(ROWS))


def test_few_rows_are_encoded_ahead_of_those_that_are_taken(encoder_of: Callable[[ScriptedModel], RowEncoder]) -> None:
    begun: list[int] = []
    model = RowByRow()
    model.on_encode = lambda rows: begun.append(rows[0].row_index)
    encoded = encoder_of(model).encode(ROWS)
    assert next(encoded).row.row_index == 0
    assert max(begun) <= 4


def test_with_large_rows_ready_no_thread_begins_with_more(
    encoder_of: Callable[[ScriptedModel], RowEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Large(RowByRow):
        def for_thread(self, number: int) -> Large:
            return self

        def encode(self, rows: Sequence[Row]) -> list[Encoded]:
            return [replace(one, num_bytes=2**30) for one in super().encode(rows)]

    encoder = encoder_of(Large())
    assert encoder._pool is not None
    submit, begun = encoder._pool.submit, list[Any]()

    def noted(*arguments: Any) -> Any:
        begun.append(submit(*arguments))
        return begun[-1]

    monkeypatch.setattr(encoder._pool, "submit", noted)
    encoded = encoder.encode(ROWS)
    next(encoded)
    num_begun = len(begun)
    assert not wait(begun, timeout=300).not_done
    for _ in range(num_begun - 1):
        next(encoded)
        assert len(begun) == num_begun
    assert len(list(encoded)) == len(ROWS) - num_begun


def test_free_threads_begin_with_the_chunk_that_follows(encoder_of: Callable[[ScriptedModel], RowEncoder]) -> None:
    """At the end of each chunk, all threads but one would wait for its last row."""
    model = RowByRow()
    first, second = ROWS[:3], ROWS[3:]
    begun = threading.Event()

    def wait_at_the_end(rows: Sequence[Row]) -> None:
        if rows[0].row_index == 2:
            assert begun.wait(300)
        elif rows[0].row_index == 3:
            begun.set()

    model.on_encode = wait_at_the_end
    encoder = encoder_of(model)
    encoded = [*encoder.encode(first, lambda: second), *encoder.encode(second)]
    assert [one.row.row_index for one in encoded] == list(range(20))


def test_rows_that_were_begun_for_another_chunk_are_not_mixed_up(
    encoder_of: Callable[[ScriptedModel], RowEncoder],
) -> None:
    """The chunk that follows may be lost before its turn."""
    encoder = encoder_of(RowByRow())
    list(encoder.encode(ROWS[:3], lambda: ROWS[3:6]))
    assert [one.row.row_index for one in encoder.encode(ROWS[6:9])] == [6, 7, 8]
    assert list(encoder.encode([], lambda: ROWS[9:])) == []


def test_a_model_of_texts_gets_all_rows_of_a_chunk_at_once(encoder_of: Callable[[ScriptedModel], RowEncoder]) -> None:
    calls: list[int] = []
    model = ScriptedModel()
    model.on_encode = lambda rows: calls.append(len(rows))
    encoder = encoder_of(model)
    assert len(list(encoder.encode(ROWS))) == 20
    assert list(encoder.encode([])) == []
    assert calls == [20]
    assert model.threads == {threading.current_thread().name}
