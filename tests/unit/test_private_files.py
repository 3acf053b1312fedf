"""Stoker's files on a host are private to its user, and a new key is shown with the paths that it may reach."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.config.private_files import FOLDERS, make_database_file, make_private, open_private
from jobs.config.settings import Settings
from scheduler.cli import main
from scheduler.embedded.data_dir import StackLock
from scheduler.embedded.stack import code_roots

ROOT = Path(__file__).parents[2]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a data directory that others made, and may look into."""
    tmp_path.chmod(0o755)
    return Settings(data_dir=tmp_path)


def test_what_was_readable_by_others_is_private_afterwards(settings: Settings) -> None:
    for name in ("stoker.db", "stoker.db-wal", "local.key", "up.lock", "mine.jsonl"):
        (settings.data_dir / name).touch(mode=0o644)
    for name in ("logs", "redis"):
        (settings.data_dir / name).mkdir(mode=0o755)
    make_private(settings, folders=FOLDERS)
    for name in ("stoker.db", "stoker.db-wal", "local.key", "up.lock"):
        assert mode_of(settings.data_dir / name) == 0o600, name
    for name in FOLDERS:
        assert mode_of(settings.data_dir / name) == 0o700, name
    assert mode_of(settings.data_dir / "mine.jsonl") == 0o644, "it is not Stoker's"
    assert mode_of(settings.data_dir) == 0o755


def test_the_database_and_the_logs_are_made_private(settings: Settings) -> None:
    make_database_file(settings)
    make_database_file(settings)
    assert mode_of(settings.data_dir / "stoker.db") == 0o600
    with open(settings.data_dir / "a.log", "ab", opener=open_private):
        assert mode_of(settings.data_dir / "a.log") == 0o600


def test_modules_are_not_run_from_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    (data / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(data)
    for here, roots in ((data, []), (data / "in", []), (tmp_path / "link", []), (tmp_path, [tmp_path])):
        monkeypatch.chdir(here)
        assert code_roots(data) == roots
    unit = (ROOT / "ops" / "systemd" / "stoker.service").read_text()
    assert "WorkingDirectory=/var/lib/stoker\n" not in unit
    assert "Environment=STOKER_CODE_ROOTS=[]\n" in unit


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory that a stack runs on."""
    monkeypatch.delenv("STOKER_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    assert main(["--data-dir", str(data), "db", "upgrade"]) == 0
    lock = StackLock()
    lock.take(Settings(data_dir=data), wait_seconds=1.0)
    yield data
    lock.give_back()


def test_a_second_projects_key_warns_of_open_roots(
    held: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--data-dir", str(held), "keys", "create", "alice"]) == 0
    assert "warning" not in capfd.readouterr().err
    assert main(["--data-dir", str(held), "keys", "create", "bob", "--project", "search"]) == 0
    assert "jobs of search can read and write every file" in " ".join(capfd.readouterr().err.split())
    monkeypatch.setenv("STOKER_INPUT_ROOTS", '["/data"]')
    monkeypatch.setenv("STOKER_OUTPUT_ROOTS", "[]")
    assert main(["--data-dir", str(held), "keys", "create", "carol", "--project", "search"]) == 0
    assert "warning" not in capfd.readouterr().err
