"""Options of `stoker serve` and `stoker worker` reach the process that replaces the command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from jobs.config.settings import Settings
from scheduler.cli import command_line as cli


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Mapping[str, str]]:
    """The environments of the processes by which commands were replaced."""
    seen: list[Mapping[str, str]] = []

    def execve(_path: str, _argv: Sequence[str], env: Mapping[str, str]) -> None:
        seen.append(env)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("STOKER_DATA_DIR", str(tmp_path))
    return seen


def settings_of(env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a process reads from its environment."""
    for name, value in env.items():
        if name.startswith("STOKER_"):
            monkeypatch.setenv(name, value)
    return Settings()


@pytest.mark.parametrize("given", [[], ["--label", "a100"], ["--label", "a100", "--label", "eu-west.1"]])
def test_a_worker_has_the_labels_of_its_options(
    replaced: list[Mapping[str, str]], monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["worker", "--slots", "1", *given])
    assert settings_of(replaced[0], monkeypatch).labels == given[1::2]


def test_an_invalid_label_is_refused_in_one_sentence(
    replaced: list[Mapping[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["worker", "--label", "not a label"]) == cli.USAGE
    error = capsys.readouterr().err
    assert error.startswith("error: setting labels")
    assert len(error.splitlines()) == 1
    assert not replaced


def test_zero_api_processes_are_refused(replaced: list[Mapping[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--api-processes", "0"]) == cli.USAGE
    assert "--api-processes" in capsys.readouterr().err
    assert not replaced
