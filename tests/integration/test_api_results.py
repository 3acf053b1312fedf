"""Results over HTTP: complete, in order, in each format, resumable, and streamed rather than held."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.data.rows import Result, RowError
from jobs.data.sinks.export import ExportFormat
from jobs.ledger import chunks
from jobs.ledger.chunks import ChunkResults
from scheduler.api.routes.results import write_results
from tests.support.leased_job import LeasedJob
from tests.support.live_api import LiveApi

_CHUNK_ROWS = 8
_NUM_ROWS = 40


def half_done(api: LiveApi, folder: Path, *, vectors: bool = False, to: str = "database") -> LeasedJob:
    """A running job of 40 rows whose chunks 0, 1 and 3 are recorded; row 5 is a row error."""
    task = "embeddings" if vectors else "fill-mask"
    records = [{"id": f"r{row}", "text": f"text {row}"} for row in range(_NUM_ROWS)]
    job = LeasedJob(api.database, api.settings, folder, records, chunk_rows=_CHUNK_ROWS, task=task, output={"to": to})
    lease = job.lease()
    claimed = chunks.claim(api.database, lease.lease_id, limit=5)
    sink = job.sink()
    for claim in claimed[:2] + claimed[3:4]:
        results = [_result(row, vectors) for row in range(claim.start_row, claim.stop_row)]
        part = sink.stage(job.job_id, lease.lease_id, claim.start_row, results)
        chunk = ChunkResults(claim.start_row, claim.stop_row, results, part)
        chunks.commit(
            api.database, lease.lease_id, [chunk], lambda session, rows=results: sink.record(session, job.job_id, rows)
        )
    return job


def _result(row: int, vectors: bool) -> Result:
    if row == 5:
        return Result(row, f"r{row}", error=RowError("null_value", "the text is null", 6))
    output: Any = np.full(4, row, dtype=np.float32) if vectors else [{"label": "a\u2028b", "score": row / 2}]
    return Result(row, f"r{row}", output, num_tokens=3)


_RECORDED = [*range(16), *range(24, 32)]


@pytest.mark.parametrize("to", ["database", "jsonl", "parquet"])
def test_a_running_job_returns_the_recorded_rows_in_order(api: LiveApi, tmp_path: Path, to: str) -> None:
    job = half_done(api, tmp_path, to=to)
    lines = list(api.client.iter_results(job.job_id))
    assert [line["row_index"] for line in lines] == _RECORDED
    assert lines[5] == {
        "row_index": 5, "key": "r5", "output": None,
        "error": {"code": "null_value", "message": "the text is null", "line": 6},
    }  # fmt: skip
    assert lines[6] == {"row_index": 6, "key": "r6", "output": [{"label": "a\u2028b", "score": 3.0}], "error": None}
    assert api.client.job(job.job_id)["counts"] == {"total": 40, "done": 24, "failed": 1}


def test_reading_goes_on_after_a_row(api: LiveApi, tmp_path: Path) -> None:
    job = half_done(api, tmp_path)
    lines = api.client.iter_results(job.job_id, after_row=13, limit=4)
    assert [line["row_index"] for line in lines] == [14, 15, 24, 25]
    assert list(api.client.iter_results(job.job_id, after_row=2**62)) == []


def test_each_format_holds_the_same_results(api: LiveApi, tmp_path: Path) -> None:
    job = half_done(api, tmp_path, vectors=True)
    outputs = {name: tmp_path / f"out.{name}" for name in ("jsonl", "parquet", "csv")}
    api.client.results(job.job_id, outputs["jsonl"], format="jsonl")
    api.client.results(job.job_id, outputs["parquet"], format="parquet")
    api.client.results(job.job_id, outputs["csv"], format="csv")
    lines = [json.loads(line) for line in outputs["jsonl"].read_text().splitlines()]
    table = pq.read_table(outputs["parquet"])
    with outputs["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert table.column_names == ["row_index", "key", "output", "error"]
    assert [line["row_index"] for line in lines] == table["row_index"].to_pylist() == _RECORDED
    assert [int(row["row_index"]) for row in rows] == _RECORDED
    assert [line["output"] for line in lines] == table["output"].to_pylist()
    assert lines[7]["output"] == [7.0] * 4
    assert json.loads(rows[7]["output"]) == lines[7]["output"]
    assert not list(tmp_path.glob(".*"))


def test_the_answer_names_its_type(api: LiveApi, tmp_path: Path) -> None:
    job = half_done(api, tmp_path)
    answer = api.http.get(f"/v1/jobs/{job.job_id}/results", params={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == f'attachment; filename="{job.job_id}.csv"'
    assert api.http.get(f"/v1/jobs/{job.job_id}/results", params={"format": "xlsx"}).status_code == 400
    assert api.http.get("/v1/jobs/job_unknown/results").status_code == 404


@pytest.mark.parametrize("fmt", ["jsonl", "csv", "parquet"])
def test_results_are_sent_while_they_are_read(fmt: ExportFormat) -> None:
    read = 0

    def results() -> Iterator[Result]:
        nonlocal read
        for row in range(40_000):
            read += 1
            yield Result(row, None, np.random.default_rng(row).random(384, dtype=np.float32))

    blocks = write_results(results(), fmt, vector_output=True)
    next(blocks)
    assert read < 30_000
    blocks.close()


@pytest.mark.parametrize("fmt", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("num_rows", [0, 1, 64, 128, 1000])
def test_no_result_is_lost_at_the_edge_of_a_block(fmt: ExportFormat, num_rows: int, tmp_path: Path) -> None:
    results = (Result(row, f"k{row}", {"row": row}) for row in range(num_rows))
    path = tmp_path / "out"
    path.write_bytes(b"".join(write_results(results, fmt, vector_output=False)))
    if fmt == "parquet":
        assert pq.read_table(path)["row_index"].to_pylist() == list(range(num_rows))
    else:
        assert len(path.read_text().splitlines()) == num_rows + (fmt == "csv")


def test_an_error_in_the_middle_breaks_the_connection(api: LiveApi, tmp_path: Path) -> None:
    job = half_done(api, tmp_path, to="jsonl")
    chunks = [chunk for chunk in job.chunks() if chunk.part is not None]
    assert chunks[2].part is not None
    api.store.delete(chunks[2].part)
    target = tmp_path / "out.jsonl"
    with pytest.raises(Exception, match="lost the connection"):
        api.client.results(job.job_id, target)
    assert not target.exists()
