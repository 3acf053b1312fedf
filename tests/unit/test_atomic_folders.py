"""A folder that is filled aside appears whole or not at all, and killed writers leave nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.data.atomic import folder_aside

KILLED = """
import os, sys; from pathlib import Path; from jobs.data.atomic import folder_aside
with folder_aside(Path(sys.argv[1])) as aside:
    (aside / "half").write_bytes(b"half"); os.kill(os.getpid(), 9)
"""


def test_a_folder_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    with folder_aside(tmp_path / "models" / "job_1") as aside:
        (aside / "deep").mkdir()
        (aside / "deep" / "weights").write_bytes(b"weights")
        assert not (tmp_path / "models" / "job_1").exists()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["job_1"]
    assert (tmp_path / "models" / "job_1" / "deep" / "weights").read_bytes() == b"weights"


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with folder_aside(tmp_path / "job_1") as aside:
            (aside / "half").write_bytes(b"half")
            raise ValueError("no more rows")

    with pytest.raises(ValueError, match="no more rows"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_the_next_writer_removes_the_folder_of_a_killed_one(tmp_path: Path) -> None:
    for name in ("job_1", "job_2"):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    with folder_aside(tmp_path / "job_1"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir())[1:] == ["job_1"]
    assert next(tmp_path.glob(".job_2-*")).is_dir(), "another path's, which its own next writer removes"


def test_two_live_writers_keep_the_first_folder(tmp_path: Path) -> None:
    with folder_aside(tmp_path / "job_1") as slow:
        (slow / "weights").write_bytes(b"same")
        with folder_aside(tmp_path / "job_1") as quick:
            (quick / "weights").write_bytes(b"same")
        assert (slow / "weights").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["job_1"]
    assert (tmp_path / "job_1" / "weights").read_bytes() == b"same"
