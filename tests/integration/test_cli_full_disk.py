"""A disk that is full, or a file that may not grow, is one sentence with the path in it, and leaves no half file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.data.store_keys import artifact_key
from jobs.db.tables import Artifact, ResultRecord
from jobs.ledger import jobs as job_ledger
from jobs.specs.inference import parse_spec
from tests.support.live_api import LiveApi, fresh_api, spec_document
from tests.support.rows import write_rows
from tests.support.stack import free_port

_RUN = """
import resource, sys
from scheduler.cli import main
most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
sys.exit(main(sys.argv[2:]))
"""
"""Run the command in a process whose files may have this many bytes, as on a disk that becomes full."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """A running API."""
    with fresh_api(tmp_path_factory.mktemp("full")) as running:
        yield running


def stoker(most_bytes: int, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command that must end with one sentence."""
    ended = subprocess.run(
        [sys.executable, "-c", _RUN, str(most_bytes), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1, ended
    assert ended.stderr.startswith("error: "), ended
    assert len(ended.stderr.splitlines()) == 1
    assert "File too large" in ended.stderr
    return ended


def test_run_cannot_start_a_stack(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 1)
    data = tmp_path / "data"
    command = ("run", "fill-mask", "--model", "org/model", "--input", str(rows), "--data-dir", str(data))
    ended = stoker(0, *command, STOKER_PORT=str(free_port()))  # a developer's own stack may be at the usual one
    assert f"'{data}" in ended.stderr
    assert "free some space there" in ended.stderr


def test_results_and_artifacts_cannot_be_written(api: LiveApi, tmp_path: Path) -> None:
    variables = {"STOKER_URL": api.url, "STOKER_API_KEY": api.key, "STOKER_DATA_DIR": str(api.settings.data_dir)}
    made = job_ledger.submit(api.database, parse_spec(spec_document(tmp_path / "in.jsonl")), project="default")
    with api.database.write() as session:
        for row in range(50):
            session.add(ResultRecord(job_id=made.id, row_index=row, output='"' + "x" * 1000 + '"'))
    out = tmp_path / "out.jsonl"
    ended = stoker(1000, "results", made.id, "--output", str(out), **variables)
    assert f"{out}" in ended.stderr
    assert not out.exists()
    stored = api.store.put(artifact_key(made.id, "a.bin"), [bytes(5000)])
    with api.database.write() as session:
        session.add(
            Artifact(
                job_id=made.id, name="a.bin", key=stored.key, num_bytes=stored.num_bytes, sha256=stored.sha256,
                created_at=1.0,
            )
        )  # fmt: skip
    folder = tmp_path / "out"
    ended = stoker(1000, "artifacts", made.id, "--output", str(folder), **variables)
    assert f"{folder / 'a.bin'}" in ended.stderr
    assert list(folder.iterdir()) == []
