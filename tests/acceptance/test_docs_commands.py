"""Every command of the quickstart is run in a shell against real servers, and its output is compared with the page."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.stack import Stack

QUICKSTART = Path(__file__).parents[2] / "ops" / "docs" / "quickstart.md"
_READY = "stoker ready at "
_VARIABLE = re.compile(
    r"job_[0-9a-f]+"
    r"|/[\w/.-]*/tour\b"
    r"|http://[\w.:]+"
    r"|\S+-cpu0\b.*"  # the machine's own names
    r"|-?\d[\d.,]*(?: (?:B|KiB|MiB|GiB|TiB)\b|m?s\b|m\d+s\b)?"
)
"""What differs from run to run: ids, folders, names of the machine, numbers with their units."""
_FAILS = {
    "stoker run embedings --model minilm --input reviews.csv": 2,
    "stoker run embeddings --model minilm --input reviews.csv": 2,
    "stoker doctor": None,
}
"""Exit codes of commands that the page shows failing (None: either, it depends on the machine); others end with 0."""


@dataclass
class Command:
    """One command of a page, and the output that the page shows for it."""

    text: str
    prints: list[str] = field(default_factory=list)


def console_commands(page: str) -> list[Command]:
    """The commands of a page's console blocks, in their order."""
    commands: list[Command] = []
    for block in re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                commands.append(Command(line.removeprefix("$ ")))
            else:
                commands[-1].prints.append(line)
    return commands


def pattern_of(line: str) -> re.Pattern[str]:
    """A line of a page as a pattern: `...` and its variable parts may be anything, runs of spaces have any length."""
    pieces = re.split(rf"(\.\.\.|\s{{2,}}|{_VARIABLE.pattern})", line)
    made = ""
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            made += re.escape(piece)
        else:
            made += r"\s+" if piece.isspace() else ".+"
    return re.compile(made)


class Shell:
    """One bash that runs command after command, as the reader's does; stdout and stderr come together."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> tuple[int, list[str]]:
        """The exit code and the lines printed."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        end = f"end-{secrets.token_hex(8)}"
        self._bash.stdin.write(f"{command}\necho {end} $?\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.startswith(end):
                return int(line.split()[1]), lines
            lines.append(line.rstrip("\n"))
        raise AssertionError(f"the shell ended in `{command}`: {lines}")

    def close(self) -> None:
        """End it."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.close()
        self._bash.wait(300)
        self._bash.stdout.close()


@pytest.fixture
def tour() -> Iterator[tuple[Shell, Stack]]:
    """A shell in an empty folder, and the stack that `stoker up` brings there, which leaves no process behind."""
    short = Path(tempfile.mkdtemp(prefix="stoker-"))  # tables break longer lines
    folder = short / "tour"
    folder.mkdir()
    stack = Stack(short / "data", slots=1, STOKER_SLOTS="1")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = Shell(folder, {**stack.environment, "PATH": path, "HF_HUB_OFFLINE": "1"})
    try:
        yield shell, stack
    finally:
        shell.close()
        if stack.up is not None:
            stack.stop()
        orphans = stack.processes()
        for orphan in orphans.values():
            orphan.kill()
        shutil.rmtree(short, ignore_errors=True)
    assert not orphans


@pytest.mark.slow
def test_each_command_of_the_quickstart_does_as_the_page_says(tour: tuple[Shell, Stack]) -> None:
    shell, stack = tour
    commands = console_commands(QUICKSTART.read_text(encoding="utf-8"))
    assert len(commands) > 15
    for command in commands:
        if command.text == "stoker up":  # in a second terminal
            stack.start()
            assert command.prints == [f"{_READY}http://127.0.0.1:8470"]
            continue
        code, lines = shell.run(command.text)
        wanted = _FAILS.get(command.text, 0)
        assert wanted is None or code == wanted, f"`{command.text}` -> {code}: {lines}"
        left = iter(lines)
        for line in command.prints:
            pattern = pattern_of(line)
            assert any(pattern.fullmatch(found) for found in left), f"`{command.text}` printed {lines}, not '{line}'"
