"""Every kind of input gives the same results, in every kind of output; and a bad row is data, with its line number."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import tiny
from tests.support.deployment import Deployment
from tests.support.records import records_of
from tests.support.rows import write_rows
from tests.support.stack import stack

NUM_ROWS = 60
ROWS = [
    {"id": f"r{row}", "body": f'{row}: "{tiny.SENTENCES[row % len(tiny.SENTENCES)]}", and\na second line'}
    for row in range(NUM_ROWS)
]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One slot; the same rows as JSONL, CSV, TSV, Parquet, three files and a saved data set."""
    folder = tmp_path_factory.mktemp("io")
    tiny.tiny_encoder(folder / "model")
    tiny.tiny_classifier(folder / "classifier")
    write_rows(folder / "rows.jsonl", ROWS)
    write_csv(folder / "rows.csv", ",")
    write_csv(folder / "rows.tsv", "\t")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=NUM_ROWS // 3)
    for part in range(3):
        write_rows(folder / f"part-{part}.jsonl", ROWS[part * 20 : part * 20 + 20])
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    with stack(folder / "data", slots=1) as running, records_of(running) as seen:
        yield Deployment(running, seen, folder)


@pytest.fixture(scope="module")
def expected(deployed: Deployment) -> list[dict[str, Any]]:
    """The results of the JSONL input."""
    return deployed.stack.results(deployed.completed(spec_of(deployed, "rows.jsonl")))


def spec_of(deployed: Deployment, name: str, **fields: Any) -> dict[str, Any]:
    """The spec of an embeddings job over an input in the folder, or over an upload."""
    path = name if name.startswith("file:") else str(deployed.folder / name)
    spec_input = {"path": path, "key": "id", "columns": {"text": "body"}}
    if name.endswith(".tsv"):
        spec_input["quoting"] = "minimal"
    # One chunk for each third, so that inputs in three files are cut at the same rows and packed in equal batches.
    batching = {"chunk_rows": NUM_ROWS // 3}
    return {"task": "embeddings", "model": str(deployed.model), "input": spec_input, "batching": batching, **fields}


def write_csv(path: Path, delimiter: str) -> None:
    """With quoted delimiters, quotes and line ends in its texts, and a byte order mark."""
    with path.open("w", encoding="utf-8-sig", newline="") as out:
        writer = csv.DictWriter(out, ["id", "body"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def test_the_results_are_the_rows_in_order(deployed: Deployment, expected: list[dict[str, Any]]) -> None:
    assert [result["row_index"] for result in expected] == list(range(NUM_ROWS))
    assert [result["key"] for result in expected] == [row["id"] for row in ROWS]
    assert all(len(result["output"]) == 32 and result["error"] is None for result in expected)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.parquet", "part-*.jsonl", "saved"])
def test_every_form_of_input_gives_the_same_results(
    deployed: Deployment, expected: list[dict[str, Any]], name: str
) -> None:
    assert deployed.stack.results(deployed.completed(spec_of(deployed, name))) == expected


def test_an_upload_is_an_input(deployed: Deployment, expected: list[dict[str, Any]]) -> None:
    with deployed.stack.client() as client:
        file_id = client.upload(deployed.folder / "rows.parquet")["id"]
    assert deployed.stack.results(deployed.completed(spec_of(deployed, f"file:{file_id}"))) == expected


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_run_writes_every_form_of_output(deployed: Deployment, expected: list[dict[str, Any]], ending: str) -> None:
    target = deployed.folder / f"out.{ending}"
    done = deployed.stack.run(
        "run", "embeddings", "--model", "model", "--input", "rows.csv", "--text-column", "body", "--key", "id",
        "--chunk-rows", str(NUM_ROWS // 3), "--output", target.name, cwd=deployed.folder,
    )  # fmt: skip
    assert done.stdout == ""
    assert str(target.name) in done.stderr
    assert_same(read_results(target), expected)
    assert not list(deployed.folder.glob(f".*{ending}*"))


def test_run_prints_the_results_where_no_file_is_named(deployed: Deployment) -> None:
    done = deployed.stack.run(
        "run", "sentiment-analysis", "--model", "classifier", "--input", "rows.jsonl", "--column", "text=body",
        "--param", "top_k=2", cwd=deployed.folder,
    )  # fmt: skip
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["row_index"] for result in results] == list(range(NUM_ROWS))
    for result in results:
        assert [set(label) for label in result["output"]] == [{"label", "score"}] * 2


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_job_writes_the_file_that_its_spec_names(
    deployed: Deployment, expected: list[dict[str, Any]], form: str
) -> None:
    target = deployed.folder / f"delivered.{form}"
    spec = spec_of(deployed, "rows.jsonl", output={"to": form, "path": str(target)})
    job_id = deployed.completed(spec)
    assert_same(read_results(target), expected)
    assert_same(deployed.stack.results(job_id), expected)
    fetched = deployed.folder / f"artifacts-{form}"
    deployed.stack.run("artifacts", job_id, "--output", str(fetched))
    assert (fetched / f"results.{form}").read_bytes() == target.read_bytes()


def test_bad_rows_are_errors_with_their_line_and_the_rest_is_computed(
    deployed: Deployment, expected: list[dict[str, Any]]
) -> None:
    lines = [json.dumps(row).encode() for row in ROWS]
    lines[7] = b'{"id": "r7", "body": "cut of'
    lines[20] = b'{"id": "r20", "body": null}'
    lines[33] = b'{"id": "r33"}'
    lines[34] = b'{"id": "r34", "body": "\xff\xfe"}'
    lines[59] = b"[1, 2]"
    lines.insert(10, b"")  # a blank line is no row, but it counts as a line
    path = deployed.folder / "damaged.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    job_id = deployed.completed(spec_of(deployed, path.name), num_failed=5)
    results = deployed.stack.results(job_id)
    errors = {result["row_index"]: result["error"] for result in results if result["error"] is not None}
    assert {row: error["line"] for row, error in errors.items()} == {7: 8, 20: 22, 33: 35, 34: 36, 59: 61}
    assert errors[7]["code"] == "invalid_json_line"
    assert errors[20]["code"] == "null_value"
    assert all(error["message"] for error in errors.values())
    job = deployed.records.job(job_id)
    assert (job.num_rows, job.num_done, job.num_failed) == (NUM_ROWS, NUM_ROWS, 5)
    for result, good in zip(results, expected, strict=True):
        assert result["row_index"] == good["row_index"]
        if result["error"] is None:  # the batches are packed without the bad rows: the last bits may differ
            assert result["key"] == good["key"]
            assert np.allclose(result["output"], good["output"], atol=1e-5)


def read_results(path: Path) -> list[dict[str, Any]]:
    """The results in a file of any form."""
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{**row, "row_index": int(row["row_index"])} for row in csv.DictReader(file)]
        for row in rows:
            row["output"], row["error"] = json.loads(row["output"]), json.loads(row["error"] or "null")
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return rows


def assert_same(results: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal to the last bit of a float32, whichever way its digits are written."""
    assert [{**result, "output": None} for result in results] == [{**result, "output": None} for result in expected]
    for result, other in zip(results, expected, strict=True):
        assert np.array_equal(np.float32(result["output"]), np.float32(other["output"]))
