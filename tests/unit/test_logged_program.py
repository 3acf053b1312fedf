"""Programs of the embedded stack: their logs and the descriptors that they inherit."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from scheduler.embedded import logged_program
from scheduler.embedded.logged_program import last_line, rotate_log

make = logged_program.logged_program


def test_a_program_writes_a_private_log_and_inherits_file_descriptors(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    starts: list[int] = []
    code = f"import os, sys; os.write({write_end}, b'here'); sys.exit('this is why')"
    log = tmp_path / "dying.log"
    program = make(
        [sys.executable, "-c", code],
        log,
        grace_seconds=1.0,
        env={},
        pass_fds=[write_end],
        before_start=starts.append,
    )
    assert (program.name, program.log) == ("dying", log)
    assert program.start(2).wait() == 1
    os.close(write_end)
    assert os.read(read_end, 16) == b"here"
    os.close(read_end)
    assert last_line(log) == "this is why"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert starts == [2]


def test_a_log_that_cannot_be_written_is_reported_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        make(["true"], tmp_path / "missing" / "a.log", grace_seconds=1.0, env={})
    assert caught.value.filename == str(tmp_path / "missing" / "a.log")


def test_large_logs_are_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logged_program, "_KEPT_LOG_BYTES", 4)
    log = tmp_path / "a.log"
    for number in range(6):
        log.write_text(f"log {number}")
        rotate_log(log)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.log.1": "log 5",
        "a.log.2": "log 4",
        "a.log.3": "log 3",
    }
    rotate_log(log)
    assert last_line(log) == ""
