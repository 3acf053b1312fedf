"""Limits as an operator writes them, and the waits that they lead to."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.config.limits import ProjectLimits, limits_of
from jobs.config.settings import Settings
from jobs.ledger.accounts.usage import seconds_until
from scheduler.embedded.environment import settings_environment


def settings_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Settings:
    """Settings with this `stoker.toml`."""
    config = tmp_path / "stoker.toml"
    config.write_text(text)
    monkeypatch.setenv("STOKER_CONFIG", str(config))
    return Settings()


def test_a_project_has_its_own_table_or_that_of_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(
        tmp_path,
        monkeypatch,
        '[projects."*"]\nqueued_rows = 10\nrequests_per_second = 5\n[projects.search]\nupload_bytes = 100\n',
    )
    assert limits_of("ads", settings.projects) == ProjectLimits(queued_rows=10, requests_per_second=5)
    assert limits_of("search", settings.projects) == ProjectLimits(upload_bytes=100)
    assert limits_of("default", settings.projects) == ProjectLimits()
    own = settings_of(tmp_path, monkeypatch, "[projects.default]\nqueued_rows = 7\n")
    assert limits_of("default", own.projects).queued_rows == 7
    assert limits_of("ads", own.projects) == ProjectLimits()


@pytest.mark.parametrize(
    "text",
    [
        "[projects.search]\nqueued_rows = 0\n",
        "[projects.search]\nupload_bytes = -1\n",
        '[projects.search]\nrequests_per_second = "many"\n',
        "[projects.search]\nrequests_per_second = 0.5\n",
        "[projects.search]\nqueud_rows = 1\n",
        '[projects."a b"]\nqueued_rows = 1\n',
        "[projects]\nsearch = 5\n",
    ],
)
def test_a_wrong_table_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(ValidationError, match="projects"):
        settings_of(tmp_path, monkeypatch, text)


def test_limits_reach_the_processes_of_an_embedded_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API of `stoker up` is a child that gets its settings by the environment."""
    settings = settings_of(tmp_path, monkeypatch, '[projects."*"]\nqueued_rows = 10\n')
    monkeypatch.delenv("STOKER_CONFIG")
    for name, value in settings_environment(settings).items():
        if name.startswith("STOKER_"):
            monkeypatch.setenv(name, value)
    assert limits_of("ads", Settings().projects).queued_rows == 10


def test_the_wait_goes_by_how_fast_the_project_has_been() -> None:
    assert seconds_until(100, per_second=10.0) == 10
    assert seconds_until(1, per_second=1000.0) == 1
    assert seconds_until(10**9, per_second=1.0) == 30
    assert 1 <= seconds_until(5, per_second=0.0) <= 30
