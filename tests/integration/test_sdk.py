"""The `stoker` package over a running API: jobs are submitted, followed, read and cancelled by typed calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stoker
from jobs.data.rows import Result, RowError
from jobs.ledger import chunks
from jobs.ledger import jobs as job_ledger
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leasing import leases
from scheduler.control.finalizer import finalize_job
from tests.support.leased_job import LeasedJob
from tests.support.live_api import LiveApi
from tests.support.rows import write_rows

_NUM_ROWS = 8


@pytest.fixture
def client(api: LiveApi) -> Iterator[stoker.Client]:
    """A client of the running API."""
    with stoker.Client(api.url, api.key, retry_seconds=0) as client:
        yield client


def completed(api: LiveApi, folder: Path, **spec: Any) -> str:
    """A completed job of eight rows, of which row 5 is a row error. Returns its id."""
    records = [{"id": f"r{row}", "text": f"text {row}"} for row in range(_NUM_ROWS)]
    job = LeasedJob(api.database, api.settings, folder, records, **spec)
    lease = job.lease()
    is_vectors = spec.get("task") == "embeddings"
    results = [
        Result(row, f"r{row}", error=RowError("null_value", "the text is null", 6))
        if row == 5
        else Result(row, f"r{row}", np.full(4, row, np.float32) if is_vectors else {"row": row}, num_tokens=3)
        for row in range(_NUM_ROWS)
    ]
    sink = job.sink()
    chunks.claim(api.database, lease.lease_id, limit=1)
    part = sink.stage(job.job_id, lease.lease_id, 0, results)
    chunk = ChunkResults(0, _NUM_ROWS, results, part)
    chunks.commit(api.database, lease.lease_id, [chunk], lambda session: sink.record(session, job.job_id, results))
    leases.release(api.database, lease.lease_id, "finished")
    finalize_job(api.database, api.store, api.settings, job.job_id)
    return job.job_id


def test_a_typed_spec_is_submitted_and_the_job_found_again(
    client: stoker.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", 3)
    spec = stoker.InferenceSpec(
        task="fill-mask", model="org/model", input=stoker.InputSpec(path="rows.jsonl", key="id"), priority="low"
    )
    job = client.submit(spec, idempotency_key="one")
    assert client.submit(spec, idempotency_key="one").id == job.id
    assert (job.state, job.info.kind, job.info.priority) == (stoker.JobState.VALIDATING, "inference", "low")
    assert job.info.spec["input"]["path"] == str(tmp_path / "rows.jsonl")
    assert [found.id for found in client.jobs(state="validating")] == [job.id]
    job.cancel()
    assert client.job(job.id).wait(check=False).state == stoker.JobState.CANCELLED
    with pytest.raises(stoker.JobFailed, match=f"job {job.id} ended as cancelled"):
        job.wait()


def test_a_training_spec_names_its_kind_by_itself(client: stoker.Client, tmp_path: Path) -> None:
    spec = stoker.TrainingSpec(trainer="torch", module="recipes.cnn", arguments={"max_steps": 1})
    assert client.submit(spec).info.kind == "training"
    with pytest.raises(stoker.InvalidSpec, match=r"there is no 'recipes\.nope'"):
        stoker.TrainingSpec(trainer="torch", module="recipes.nope")


def test_results_are_typed_rows_tables_frames_and_files(api: LiveApi, client: stoker.Client, tmp_path: Path) -> None:
    job = client.job(completed(api, tmp_path)).wait()
    rows = list(job.results())
    assert [row.row_index for row in rows] == list(range(_NUM_ROWS))
    assert rows[4] == stoker.Result(4, "r4", {"row": 4}, None)
    assert rows[5] == stoker.Result(5, "r5", None, stoker.RowError("null_value", "the text is null", 6))
    assert [row.row_index for row in job.results(after_row=5, limit=1)] == [6]
    assert job.to_arrow()["key"].to_pylist() == [row.key for row in rows]
    frame = job.to_pandas()
    assert frame["output"][4] == {"row": 4}
    assert (frame["output"][5], frame["error"][5]["code"]) == (None, "null_value")
    assert job.save_results(tmp_path / "out.jsonl") == (tmp_path / "out.jsonl").stat().st_size
    with pytest.raises(stoker.InvalidOutput, match=r"must end in \.jsonl, \.parquet, \.csv"):
        job.save_results(tmp_path / "out.txt")


def test_vectors_come_as_float32(api: LiveApi, client: stoker.Client, tmp_path: Path) -> None:
    job = client.job(completed(api, tmp_path, task="embeddings", output={"to": "parquet"}))
    frame = job.to_pandas()
    assert frame["output"][3].dtype == np.float32
    assert frame["output"][3].tolist() == [3.0] * 4
    (artifact,) = job.artifacts()
    (path,) = job.save_artifacts(tmp_path / "made")
    assert (path.name, path.stat().st_size) == (artifact.name, artifact.num_bytes)


def test_a_failed_job_is_an_error_with_its_code(api: LiveApi, client: stoker.Client, tmp_path: Path) -> None:
    leased = LeasedJob(api.database, api.settings, tmp_path, [{"id": "a", "text": "b"}])
    job_ledger.fail(api.database, leased.job_id, stoker.InvalidInput("row 0 is torn"))
    job = client.job(leased.job_id)
    with pytest.raises(stoker.JobFailed, match="ended as failed: row 0 is torn") as failed:
        job.wait()
    assert (failed.value.code, failed.value.job.state) == ("invalid_input", stoker.JobState.FAILED)
    assert "job.failed" in [event.name for event in job.events()]
    assert [info.state for info in job.watch()][-1] == stoker.JobState.FAILED


def test_an_uploaded_file_is_named_by_its_path(client: stoker.Client, tmp_path: Path) -> None:
    sent: list[int] = []
    uploaded = client.upload(write_rows(tmp_path / "rows.jsonl", 3), on_progress=sent.append)
    assert uploaded.path == f"file:{uploaded.id}"
    assert (uploaded.filename, uploaded.num_bytes) == ("rows.jsonl", sent[-1])
    with pytest.raises(stoker.ApiError) as missing:
        client.job("job_nope")
    assert missing.value.status == 404


def test_a_client_without_arguments_finds_the_local_stack(api: LiveApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.settings.data_dir.mkdir(exist_ok=True)
    api.settings.url_path.write_text(api.url)
    api.settings.local_key_path.write_text(api.key)
    monkeypatch.setenv("STOKER_DATA_DIR", str(api.settings.data_dir))
    with stoker.Client(retry_seconds=0) as client:
        assert list(client.jobs()) == []
    with pytest.raises(stoker.InvalidSpec, match="is not a URL"):
        stoker.Client("nonsense")


def test_type_checkers_see_the_names_that_exist() -> None:
    assert stoker.__file__ is not None
    tree = ast.parse(Path(stoker.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == {(None, "training")} | {
        (module, name) for module, names in stoker._NAMES.items() for name in names
    }
    assert set(stoker.__all__) <= set(dir(stoker))
    for name in stoker.__all__:
        getattr(stoker, name)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = stoker.nope  # type: ignore[attr-defined]
