"""A row that kills, hangs or breaks the model among good ones costs its own result, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.deployment import Deployment, deployment, numbered_texts
from tests.support.odd_model import HANGS, KILLS, RAISES

NUM_ROWS = 32
NUM_CHARACTERS = 20  # of a text; the odd word then makes no row longer than the others

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two slots whose runners count as stuck after three seconds in one forward pass."""
    quick = {"STOKER_STALL_LIMITS": '{"forward": 3}', "STOKER_RETRY_SECONDS": "0.2"}
    with deployment(tmp_path_factory.mktemp("poison"), slots=2, **quick) as running:
        yield running


def submit(deployed: Deployment, name: str, words: dict[int, str], *, chunk_rows: int) -> str:
    """Submit a job in which the texts of some rows begin with an odd word. Returns its id."""
    texts = numbered_texts(NUM_ROWS, words, characters=NUM_CHARACTERS)
    return deployed.stack.submit(deployed.spec(name, texts, chunk_rows=chunk_rows))


def test_odd_rows_become_row_errors_and_good_ones_are_computed(deployed: Deployment) -> None:
    calm = submit(deployed, "calm", {}, chunk_rows=8)
    killed = submit(deployed, "kills", {11: KILLS}, chunk_rows=2)
    hung = submit(deployed, "hangs", {5: HANGS}, chunk_rows=1)
    raised = submit(deployed, "raises", {3: RAISES, 20: RAISES}, chunk_rows=16)
    for job_id, num_failed in ((calm, 0), (killed, 1), (hung, 1), (raised, 2)):
        deployed.assert_completed(job_id, num_failed=num_failed)
    expected = deployed.stack.results(calm)

    error = errors_of(deployed, killed, [11], expected)[0]
    assert error["code"] == "poison_row"
    assert "SIGKILL" in error["message"]
    splits = deployed.records.data(killed, "chunk.split")
    assert [(split["start_row"], split["stop_row"]) for split in splits] == [(10, 12)]

    error = errors_of(deployed, hung, [5], expected)[0]
    assert error["code"] == "poison_row"
    assert "made no progress" in error["message"]

    for error in errors_of(deployed, raised, [3, 20], expected):
        assert error["code"] == "row_failed"
        assert "cannot compute" in error["message"]
    assert all(chunk.crashes == 0 and chunk.attempt == 1 for chunk in deployed.records.chunks(raised))

    after = submit(deployed, "after", {}, chunk_rows=8)
    deployed.assert_completed(after)
    assert deployed.stack.results(after) == expected


def errors_of(
    deployed: Deployment, job_id: str, rows: list[int], expected: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The errors of exactly these rows, after all others were found to have the right output."""
    results = deployed.stack.results(job_id)
    assert [result["row_index"] for result in results] == list(range(NUM_ROWS))
    assert [result["key"] for result in results] == [f"r{row}" for row in range(NUM_ROWS)]
    assert [result["row_index"] for result in results if result["error"] is not None] == rows
    assert deployed.records.job(job_id).num_failed == len(rows)
    for result, calm in zip(results, expected, strict=True):
        if result["error"] is None:  # batches of other rows: the last bits may differ
            assert np.allclose(result["output"], calm["output"], atol=1e-5)
    return [results[row]["error"] for row in rows]
