"""A program of the embedded stack and its log file, which is private to its owner and rotated when the stack starts."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jobs import process
from jobs.config.private_files import open_private
from jobs.supervisor import Program

_KEPT_LOG_BYTES = 10 * 2**20
_KEPT_LOGS = 3
_TAIL_BYTES = 8192


def logged_program(
    argv: Sequence[str],
    log: Path,
    *,
    grace_seconds: float,
    env: Mapping[str, str],
    pass_fds: Sequence[int] = (),
    before_start: Callable[[int], None] = lambda _num_quick_deaths: None,
) -> Program:
    """Describe a program whose output goes to a log file, and prepare that file.

    Args:
        argv: The program and its arguments.
        log: The file; the program is named after it.
        grace_seconds: Time between SIGTERM and SIGKILL when the program is ended.
        env: The program's whole environment.
        pass_fds: File descriptors that the program inherits.
        before_start: Called before each start with the number of quick deaths in a row.

    Raises:
        OSError: The log cannot be written.
    """
    rotate_log(log)
    with open(log, "ab", opener=open_private):
        pass  # what keeps the log from being written is reported now, not at each start

    def start(num_quick_deaths: int) -> subprocess.Popen[bytes]:
        before_start(num_quick_deaths)
        with open(log, "ab", opener=open_private) as output:
            return process.spawn(
                argv,
                env=env,
                stdout=output,
                stderr=output,
                pass_fds=pass_fds,
                on_parent_death=signal.SIGTERM,
            )

    return Program(log.stem, start, grace_seconds, log=log)


def rotate_log(path: Path) -> None:
    """Rotate a log that has grown large, keeping a few older ones."""
    if not path.exists() or path.stat().st_size < _KEPT_LOG_BYTES:
        return
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, _KEPT_LOGS + 1))]
    for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
        if newer.exists():
            newer.replace(older)


def last_line(log: Path) -> str:
    """The last line of a log that is not blank, or an empty string."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except FileNotFoundError:
        return ""
    return next((line for line in reversed(lines) if line), "")
