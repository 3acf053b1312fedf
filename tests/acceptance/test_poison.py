"""A row that kills, hangs or breaks the model among good ones costs its own result, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.odd_model import HANGS, KILLS, RAISES, odd_encoder, trusting
from tests.support.records import Records, records_of
from tests.support.stack import Stack, stack
from tests.support.tiny import SENTENCES

NUM_ROWS = 32
NUM_CHARACTERS = 20  # of a text; the odd word then makes no row longer than the others

pytestmark = pytest.mark.slow


@dataclass
class Site:
    """A running stack and what the tests give it."""

    stack: Stack
    records: Records
    folder: Path
    model: Path

    def submit(self, name: str, *, odd_rows: dict[int, str], chunk_rows: int) -> str:
        """A job in which some rows have an odd word. Returns its id."""
        path = self.folder / f"{name}.jsonl"
        with path.open("w", encoding="utf-8") as out:
            for row in range(NUM_ROWS):
                text = f"{odd_rows.get(row, '')} {row} {SENTENCES[row % len(SENTENCES)][:NUM_CHARACTERS]}"
                out.write(json.dumps({"id": f"r{row}", "text": text}) + "\n")
        document = {"task": "embeddings", "model": str(self.model), "input": {"path": str(path), "key": "id"}}
        return self.stack.submit({**document, "batching": {"chunk_rows": chunk_rows}})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two slots whose runners count as stuck after three seconds in one forward pass."""
    folder = tmp_path_factory.mktemp("poison")
    model = odd_encoder(folder / "model", gate=folder / "gate")
    quick = {
        "STOKER_STALL_LIMITS": '{"forward": 3}',
        "STOKER_RETRY_SECONDS": "0.2",
        **trusting(model, folder / "modules"),
    }
    with stack(folder / "data", slots=2, **quick) as running, records_of(running) as seen:
        yield Site(running, seen, folder, model)


def test_odd_rows_become_row_errors_and_good_ones_are_computed(site: Site) -> None:
    calm = site.submit("calm", odd_rows={}, chunk_rows=8)
    killed = site.submit("kills", odd_rows={11: KILLS}, chunk_rows=4)
    hung = site.submit("hangs", odd_rows={5: HANGS}, chunk_rows=2)
    raised = site.submit("raises", odd_rows={3: RAISES, 20: RAISES}, chunk_rows=16)
    for job_id in (calm, killed, hung, raised):
        assert site.stack.await_end(job_id, 240)["state"] == "completed"
        site.records.assert_sound(job_id)
    expected = site.stack.results(calm)

    error = the_errors(site, killed, [11], expected)[0]
    assert error["code"] == "poison_row"
    assert "SIGKILL" in error["message"]
    splits = site.records.data(killed, "chunk.split")
    assert [(split["start_row"], split["stop_row"]) for split in splits] == [(8, 12), (10, 12)]

    error = the_errors(site, hung, [5], expected)[0]
    assert error["code"] == "poison_row"
    assert "made no progress" in error["message"]

    for error in the_errors(site, raised, [3, 20], expected):
        assert error["code"] == "row_failed"
        assert "cannot compute" in error["message"]
    assert all(chunk.crashes == 0 and chunk.attempt == 1 for chunk in site.records.chunks(raised))

    after = site.submit("after", odd_rows={}, chunk_rows=8)
    assert site.stack.await_end(after, 60)["state"] == "completed"
    assert site.stack.results(after) == expected


def the_errors(site: Site, job_id: str, rows: list[int], expected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The errors of exactly these rows, after all others were found to have the right output."""
    results = site.stack.results(job_id)
    assert [result["row_index"] for result in results] == list(range(NUM_ROWS))
    assert [result["key"] for result in results] == [f"r{row}" for row in range(NUM_ROWS)]
    assert [result["row_index"] for result in results if result["error"] is not None] == rows
    assert site.records.job(job_id).num_failed == len(rows)
    for result, calm in zip(results, expected, strict=True):
        if result["error"] is None:  # batches of other rows: the last bits may differ
            assert np.allclose(result["output"], calm["output"], atol=1e-5)
    return [results[row]["error"] for row in rows]
