"""`stoker run`, the command a newcomer begins with: from a file to results, by real models, nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from scheduler.embedded.data_dir import is_running
from tests.conftest import wait_until
from tests.support import tiny
from tests.support.rows import write_rows
from tests.support.stack import Stack, stack

NUM_ROWS = 200

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text classifier."""
    return tiny.tiny_classifier(tmp_path_factory.mktemp("model") / "classifier")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input with columns of the user's own names; row 3 has no text."""
    rows = [{"no": row, "body": None if row == 3 else f"{row} {tiny.SENTENCES[row % 8]}"} for row in range(NUM_ROWS)]
    return write_rows(tmp_path_factory.mktemp("rows") / "reviews.jsonl", rows)


@pytest.fixture
def nothing_runs(tmp_path: Path) -> Stack:
    """A data directory without a stack, for commands that start their own."""
    return Stack(tmp_path / "data")


@contextmanager
def begun(stoker: Stack, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A `stoker` command that runs beside the test, and has ended after the `with`."""
    argv = [sys.executable, "-m", "scheduler.cli", *arguments]
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup, whose children ignore it
    try:
        command = subprocess.Popen(
            argv, env=stoker.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGHUP, inherited)
    with command:
        try:
            yield command
        finally:
            command.kill()


def classify(model: Path, rows: Path, *more: str) -> list[str]:
    """The command line of a classification."""
    named = ["--text-column", "body", "--key", "no"]
    return ["run", "text-classification", "--model", str(model), "--input", str(rows), *named, *more]


def check_lines(lines: list[dict[str, Any]]) -> None:
    """Every row once, in order, row 3 as the one error."""
    assert [line["row_index"] for line in lines] == list(range(NUM_ROWS))
    assert [line["key"] for line in lines] == [str(row) for row in range(NUM_ROWS)]
    assert [line["row_index"] for line in lines if line["error"]] == [3]
    assert all(line["output"][0]["label"].startswith("label-") for line in lines if not line["error"])


@dataclass(frozen=True)
class OwnRun:
    """A `stoker run` that brought its own stack, after its end."""

    stoker: Stack
    stdout: str
    stderr: str
    processes_left: int


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory, classifier: Path, rows: Path) -> OwnRun:
    """The first command on a fresh data directory."""
    stoker = Stack(tmp_path_factory.mktemp("own") / "data")
    done = stoker.run(*classify(classifier, rows, "--param", "top_k=1", "--slots", "2"))
    return OwnRun(stoker, done.stdout, done.stderr, len(stoker.processes()))


@pytest.fixture(scope="module")
def running(own_run: OwnRun) -> Iterator[Stack]:
    """A stack that was started later on the same data directory."""
    with stack(own_run.stoker.data_dir) as later:
        yield later


def test_run_brings_its_own_stack_and_takes_it_away(own_run: OwnRun) -> None:
    """One command on a bare machine must be enough, and must leave results but no processes."""
    check_lines([json.loads(line) for line in own_run.stdout.splitlines()])
    assert f"completed: {NUM_ROWS} rows" in own_run.stderr
    assert "1 with a row error" in own_run.stderr
    assert own_run.processes_left == 0


def test_the_results_of_a_run_stay(own_run: OwnRun, running: Stack) -> None:
    first = json.loads(running.run("status", "--json").stdout)["data"][-1]
    assert running.run("results", first["id"]).stdout == own_run.stdout


def test_run_writes_each_kind_of_file_through_a_running_stack(
    running: Stack, tmp_path: Path, classifier: Path, rows: Path
) -> None:
    """JSONL, CSV and Parquet files have the same results."""
    for ending in ("jsonl", "csv"):
        target = str(tmp_path / f"o.{ending}")
        assert running.run(*classify(classifier, rows, "--param", "top_k=1", "--output", target)).stdout == ""
    with (tmp_path / "o.jsonl").open(encoding="utf-8") as lines:
        check_lines([json.loads(line) for line in lines])
    assert (tmp_path / "o.csv").read_text().startswith("row_index,key,output,error\n")
    arguments = ["run", "embeddings", "--model", tiny.minilm_path(), "--input", rows.name, "--text-column", "body"]
    running.run(*arguments, "--output", str(tmp_path / "o.parquet"), cwd=rows.parent)
    vectors = pq.read_table(tmp_path / "o.parquet").column("output").to_pylist()
    assert [len(vector) if vector else None for vector in vectors] == [384] * 3 + [None] + [384] * (NUM_ROWS - 4)
    assert np.allclose(np.linalg.norm(np.array(vectors[4:], dtype=np.float32), axis=1), 1.0, atol=1e-5)
    assert len(running.of_role("supervisor")) == 1, "the stack was used, not doubled"


def test_interrupting_run_cancels_the_job(running: Stack, tmp_path: Path, classifier: Path) -> None:
    """After Ctrl-C nobody waits for the job, so it must not stay on the GPUs."""
    rows = write_rows(tmp_path / "many.jsonl", ({"body": tiny.SENTENCES[row % 8] * 9} for row in range(60_000)))
    arguments = ["run", "text-classification", "--model", str(classifier), "--input", str(rows)]
    arguments += ["--text-column", "body", "--output", str(tmp_path / "out.jsonl")]
    with begun(running, *arguments) as command, running.client() as client:
        assert command.stderr is not None
        job_id = command.stderr.readline().split()[-1]
        wait_until(lambda: client.job(job_id)["counts"]["done"] > 0, "some rows are done", 120.0)
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=300)
        assert command.returncode == 130, err
        assert "Traceback" not in err
        job = client.job(job_id)
        assert job["state"] == "cancelled"
        assert len(running.run("results", job_id).stdout.splitlines()) == job["counts"]["done"] < 60_000
    assert not list(tmp_path.glob("*out.jsonl*"))


def test_runs_at_once_share_one_stack(nothing_runs: Stack, classifier: Path, rows: Path) -> None:
    """The first one to end must not take the stack away from the others."""
    arguments = classify(classifier, rows, "--param", "top_k=1")
    with ExitStack() as ending:
        commands = [ending.enter_context(begun(nothing_runs, *arguments)) for _ in range(3)]
        outputs = []
        for command in commands:
            out, err = command.communicate(timeout=1200)
            assert command.returncode == 0, err
            outputs.append(out)
    check_lines([json.loads(line) for line in outputs[0].splitlines()])
    assert outputs[0] == outputs[1] == outputs[2]
    assert not nothing_runs.processes()


def test_a_mistake_is_reported_before_a_stack_is_started(tmp_path: Path, rows: Path, nothing_runs: Stack) -> None:
    """A typing error must not cost seconds, nor leave a database behind."""
    model = tmp_path / "model"
    for arguments, words in (
        (classify(model, tmp_path / "missing.jsonl"), "missing.jsonl"),
        (["run", "text-clasification", "--model", "m", "--input", str(rows)], "text-classification"),
        (classify(model, rows, "--output", "/proc/out.jsonl"), "/proc"),
        (classify(model, rows, "--output", str(tmp_path)), "must end in"),
    ):
        refused = nothing_runs.run(*arguments, code=2)
        (sentence,) = refused.stderr.splitlines()
        assert sentence.startswith("error: ")
        assert words in sentence
    assert not (nothing_runs.data_dir / "stoker.db").exists()


def test_what_the_stack_refuses_takes_it_away_again(nothing_runs: Stack, rows: Path, tmp_path: Path) -> None:
    """A refused job must not leave workers on the machine."""
    refused = nothing_runs.run(*classify(tmp_path / "no-model", rows), code=2)
    assert "no-model" in refused.stderr
    assert refused.stdout == ""
    assert not nothing_runs.processes()


def test_a_closed_terminal_ends_the_run_and_its_stack(nothing_runs: Stack, classifier: Path, rows: Path) -> None:
    """Closing the window must not leave workers on the machine."""
    with begun(nothing_runs, *classify(classifier, rows)) as command:
        wait_until(lambda: is_running(nothing_runs.data_dir), "the stack is starting")
        command.send_signal(signal.SIGHUP)
        _, err = command.communicate(timeout=300)
    assert command.returncode == 128 + signal.SIGHUP, err
    assert "Traceback" not in err
    wait_until(lambda: not nothing_runs.processes(), "nothing is left")


def test_a_reader_that_goes_away_is_no_error(running: Stack, classifier: Path, rows: Path) -> None:
    """`stoker run ... | head -1` must end quietly."""
    with begun(running, *classify(classifier, rows)) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        err = command.stderr.read()
        assert command.wait(300) == 141, err
    assert "Traceback" not in err
    assert "error: " not in err
