"""Batches that are computed at the same time on a CPU give what they give one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.data.rows import Row, RowError
from jobs.errors import MachineError
from tests.support import tiny
from tests.support.scripted_model import ScriptedModel
from tests.support.task_kit import CPU, load
from worker.device import use_threads
from worker.inference.budget import Budget
from worker.inference.chunks import Piece
from worker.inference.engine import InferenceEngine
from worker.models.task_model import ComputationStopped, Encoded
from worker.models.texts.padding import Padding

ROWS = [Row(index, None, {"text": f"row {index}"}) for index in range(16)]
TEXTS = [Row(index, None, {"text": "hello world " * (1 + 7 * index % 19)}) for index in range(60)]


class Stateless(ScriptedModel):
    """A scripted model that several threads may use at the same time."""

    is_stateless = True


def computed(engine: InferenceEngine, rows: Sequence[Row]) -> tuple[list[list[list[Encoded]]], dict[int, Any]]:
    """The groups of rows, and each row's output or error."""
    groups = list(engine.groups(engine.encode(rows)))
    found: dict[int, Any] = {}
    for batches in groups:
        for piece in engine.compute(batches, [engine.collate(batch) for batch in batches], lambda: None):
            found.update(zip((one.row.row_index for one in piece.members), engine.decode(piece), strict=True))
    engine.close()
    return groups, found


def test_the_batches_of_a_group_run_at_the_same_time() -> None:
    model = Stateless()
    both = threading.Barrier(2, timeout=60)

    def forward(texts: list[str]) -> None:
        both.wait()  # raises after a minute, and the row would have an error

    model.on_forward = forward
    groups, found = computed(InferenceEngine(model, CPU, Budget(4, 2, 1), num_threads=2), ROWS)
    assert [len(batches) for batches in groups] == [8]
    assert found == {row.row_index: row.values["text"][::-1] for row in ROWS}


@pytest.mark.parametrize(
    ("num_batches", "num_threads", "expected"), [(1, 6, 6), (2, 6, 3), (8, 6, 1), (4, 6, 2), (8, 1, 1)]
)
def test_the_batches_of_a_group_share_the_threads(num_batches: int, num_threads: int, expected: int) -> None:
    """As many batches at once as leave no thread over."""
    model, before, seen = Stateless(), torch.get_num_threads(), set[int]()
    model.on_forward = lambda texts: seen.add(torch.get_num_threads())
    engine = InferenceEngine(model, CPU, Budget(4, 2, 1), num_threads=num_threads)
    try:
        engine.begin_thread()
        computed(engine, ROWS[: 2 * num_batches])
    finally:
        torch.set_num_threads(before)
    assert seen == {expected}


def test_a_row_that_fails_does_not_affect_other_threads() -> None:
    model = Stateless()

    def forward(texts: list[str]) -> None:
        if "row 5" in texts:
            raise ValueError("this row is strange")

    model.on_forward = forward
    _, found = computed(InferenceEngine(model, CPU, Budget(4, 2, 1), num_threads=2), ROWS)
    assert [index for index, output in found.items() if isinstance(output, RowError)] == [5]
    assert len(found) == 16


def test_a_batch_that_lacks_the_memory_of_other_threads_is_computed_alone() -> None:
    """Otherwise a row that fits would get an error, or batches would stay smaller than necessary."""
    model, budget = Stateless(), Budget(4, 2, 1)
    both = threading.Barrier(2, timeout=60)
    is_beside = [True]

    def forward(texts: list[str]) -> None:
        if not is_beside[0]:
            return
        if {"row 0", "row 2"} & set(texts):
            both.wait()
        if "row 0" in texts:
            is_beside[0] = False
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model.on_forward = forward
    _, found = computed(InferenceEngine(model, CPU, budget, num_threads=2), ROWS)
    assert found == {row.row_index: row.values["text"][::-1] for row in ROWS}
    assert model.batches.count(["row 0", "row 1"]) == 2
    assert budget.max_tokens == 4


def test_a_row_that_fails_to_decode_is_found_although_memory_lacks() -> None:
    """The second computing may lack memory; then only smaller batches are used, and no row has a wrong error."""
    model, budget = ScriptedModel(), Budget(64, 16, 1)

    def decode(texts: list[str]) -> None:
        if "row 3" in texts:
            raise ValueError("this row is strange")

    def forward(texts: list[str]) -> None:
        if len(texts) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.on_decode, model.on_forward = decode, forward
    _, found = computed(InferenceEngine(model, CPU, budget), ROWS)
    errors = {index: output.code for index, output in found.items() if isinstance(output, RowError)}
    assert errors == {3: "row_failed"}
    assert len(found) == 16


def test_an_error_that_is_not_of_a_row_ends_the_other_threads() -> None:
    model = Stateless()
    failed = threading.Event()

    def forward(texts: list[str]) -> None:
        if "row 0" in texts:
            failed.set()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        failed.wait(60)

    model.on_forward = forward
    engine = InferenceEngine(model, CPU, Budget(4, 2, 1), num_threads=2)
    with pytest.raises(MachineError, match="needs a new process"):
        computed(engine, ROWS * 8)
    engine.close()
    assert len(model.batches) < 8


def test_a_cancel_ends_a_group_before_its_next_batches() -> None:
    engine = InferenceEngine(Stateless(), CPU, Budget(4, 2, 1), num_threads=2)
    beats: list[None] = []

    def beat() -> None:
        beats.append(None)
        if len(beats) > 1:
            raise ComputationStopped

    [batches] = engine.groups(engine.encode(ROWS))
    with pytest.raises(ComputationStopped):
        engine.compute(batches, [None] * 8, beat)
    engine.close()
    assert len(beats) <= 3


def test_passes_at_the_same_time_do_not_count_twice_as_busy() -> None:
    pieces: list[Piece] = []
    engine = InferenceEngine(Stateless(), CPU, Budget(4, 2, 1), num_threads=2)
    started = time.perf_counter()
    for batches in engine.groups(engine.encode(ROWS)):
        pieces += engine.compute(batches, [None] * len(batches), lambda: None)
    for piece in pieces:
        engine.decode(piece)
    engine.close()
    assert len({piece.share for piece in pieces}) == 1
    assert 0 < engine.usage.seconds <= time.perf_counter() - started


def test_the_number_of_threads_changes_no_vector(tmp_path: Path) -> None:
    model: Any = load("embeddings", tiny.tiny_encoder(tmp_path / "model"), {})
    model.tokens.padding = model.probe_padding()
    found = []
    for num_threads in (1, 2, 3):
        groups, outputs = computed(InferenceEngine(model, CPU, Budget(64, 8, 1), num_threads=num_threads), TEXTS)
        assert sum(map(len, groups)) >= 6
        found.append(np.stack([outputs[index] for index in range(len(TEXTS))]))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_a_thread_keeps_its_number_whatever_others_set_before_it_computes() -> None:
    numbers: list[int] = []
    is_set, others = threading.Event(), threading.Event()

    def first() -> None:
        use_threads(3)
        is_set.set()
        others.wait(60)
        torch.ones(200_000).sum()
        numbers.append(torch.get_num_threads())

    thread = threading.Thread(target=first)
    thread.start()
    assert is_set.wait(60)
    second = threading.Thread(target=lambda: use_threads(1))
    second.start()
    second.join()
    others.set()
    thread.join()
    assert numbers == [3]


def test_batches_without_padding_are_computed_one_after_the_other(tmp_path: Path) -> None:
    """They put hooks into the model, which would fire for the batches of other threads."""
    model: Any = load("embeddings", tiny.tiny_encoder(tmp_path / "model"), {})
    model.tokens.padding = Padding.PACKED
    groups, _ = computed(InferenceEngine(model, CPU, Budget(64, 8, 1), num_threads=2), TEXTS)
    assert {len(batches) for batches in groups} == {1}


def test_a_batch_of_one_large_row_gets_all_threads() -> None:
    """It may call its model very often, and each call is progress."""
    model, before, seen = Stateless(), torch.get_num_threads(), list[tuple[int, int]]()
    model.on_forward = lambda texts: seen.append((len(texts[0].split()), torch.get_num_threads()))
    rows = [*ROWS[:8], Row(8, None, {"text": "word " * 9})]
    engine = InferenceEngine(model, CPU, Budget(4, 2, 1), num_threads=2)
    try:
        engine.begin_thread()
        computed(engine, rows)
    finally:
        torch.set_num_threads(before)
    assert seen[-1] == (9, 2)
    assert set(seen[:-1]) == {(2, 1)}
