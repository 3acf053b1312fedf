"""API keys: hashes only in the database, and one key file that only its owner may read."""

from __future__ import annotations

import stat
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from jobs.config.settings import Settings
from jobs.db import migrations
from jobs.db.database import Database
from jobs.errors import Conflict, InvalidSpec, NotFound
from scheduler.admin import key_cache
from scheduler.admin.key_cache import FRESH_SECONDS, KeyCache
from scheduler.admin.keys import create_key, ensure_local_key, find_key, list_keys, revoke_key


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A migrated SQLite database."""
    db = Database(f"sqlite:///{tmp_path / 'keys.db'}")
    migrations.upgrade(db)
    yield db
    db.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a data directory of the test's own."""
    return Settings(data_dir=tmp_path / "data")


def mode(path: Path) -> int:
    """Permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_is_found_by_its_secret_alone(database: Database) -> None:
    key = create_key(database, "ci", project="search")
    found = find_key(database, key.secret)
    assert found is not None
    assert (found.id, found.name, found.project) == (key.id, "ci", "search")
    for wrong in ("", key.secret[:-1], key.secret + "x", key.secret.upper(), found.sha256, "\udcff"):
        assert find_key(database, wrong) is None


def test_a_key_is_read_once_a_second_and_a_revoked_one_is_noticed_then(database: Database) -> None:
    clock = ManualClock()
    keys = KeyCache(database, clock=clock)
    key = create_key(database, "ci")
    statements = counted_statements(database)
    found = [keys.find(key.secret) for _ in range(50)]
    assert {each.id for each in found if each is not None} == {key.id}
    assert statements.total() == 1
    revoke_key(database, key.id)
    clock.now += FRESH_SECONDS * 0.99
    assert keys.find(key.secret) is not None
    clock.now += FRESH_SECONDS * 0.02
    assert keys.find(key.secret) is None
    assert keys.find(key.secret) is None


def test_wrong_keys_are_looked_up_each_time_and_not_remembered(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_cache, "_MOST_KEYS", 3)
    keys = KeyCache(database, clock=ManualClock())
    statements = counted_statements(database)
    assert [keys.find(f"wrong-{number % 2}") for number in range(10)] == [None] * 10
    assert statements.total() == 10
    assert not keys._found
    made = [create_key(database, str(number)) for number in range(5)]
    assert all(keys.find(key.secret) is not None for key in made)
    assert len(keys._found) == 3
    assert keys.find(made[0].secret) is not None


class ManualClock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def counted_statements(database: Database) -> Counter[str]:
    """Counts the statements that read keys."""
    counts: Counter[str] = Counter()

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        counts.update(["read"] if statement.startswith("SELECT") and "api_keys" in statement else [])

    event.listen(database.engine, "before_cursor_execute", count)
    return counts


@pytest.mark.parametrize("name", ["", "*", "a b", "-a", "a/b", "ä", "x" * 101])
def test_a_project_has_a_name_that_settings_can_name(database: Database, name: str) -> None:
    with pytest.raises(InvalidSpec, match=r"^project: "):
        create_key(database, "ci", project=name)
    assert list_keys(database) == []


def test_the_database_holds_no_secret(database: Database, tmp_path: Path) -> None:
    key = create_key(database, "ci")
    with database.read() as session:
        rows = session.execute(text("SELECT * FROM api_keys")).all()
    assert key.secret not in str(rows)
    assert all(key.secret.encode() not in path.read_bytes() for path in tmp_path.glob("keys.db*"))


def test_a_revoked_key_stays_listed_and_opens_nothing(database: Database) -> None:
    first, second = create_key(database, "a"), create_key(database, "b")
    assert revoke_key(database, first.id).revoked_at is not None
    assert find_key(database, first.secret) is None
    assert find_key(database, second.secret) is not None
    assert [(key.name, key.revoked_at is None) for key in list_keys(database)] == [("a", False), ("b", True)]
    with pytest.raises(Conflict, match="already revoked"):
        revoke_key(database, first.id)
    with pytest.raises(NotFound):
        revoke_key(database, "key_none")


def test_the_local_key_is_made_once_and_for_its_owner_only(settings: Settings, database: Database) -> None:
    secret = ensure_local_key(settings, database)
    path = settings.local_key_path
    assert path.read_text() == secret + "\n"
    assert mode(path) == 0o600
    path.chmod(0o644)
    assert ensure_local_key(settings, database) == secret
    assert mode(path) == 0o600
    assert len(list_keys(database)) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["local.key"]


def test_the_local_key_is_known_to_a_new_database(settings: Settings, database: Database, tmp_path: Path) -> None:
    secret = ensure_local_key(settings, database)
    other = Database(f"sqlite:///{tmp_path / 'other.db'}")
    migrations.upgrade(other)
    assert ensure_local_key(settings, other) == secret
    assert find_key(other, secret) is not None
    other.close()


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_key_file_is_replaced(settings: Settings, database: Database, content: str) -> None:
    settings.local_key_path.parent.mkdir()
    settings.local_key_path.write_text(content)
    secret = ensure_local_key(settings, database)
    assert find_key(database, secret) is not None
    assert mode(settings.local_key_path) == 0o600


def test_a_revoked_local_key_is_replaced_by_a_new_one(settings: Settings, database: Database) -> None:
    first = ensure_local_key(settings, database)
    revoke_key(database, list_keys(database)[0].id)
    second = ensure_local_key(settings, database)
    assert second != first
    assert find_key(database, first) is None
    assert find_key(database, second) is not None
    assert settings.local_key_path.read_text().strip() == second


def test_processes_that_start_at_once_agree_on_one_key(settings: Settings, database: Database) -> None:
    secrets: list[str] = []
    threads = [threading.Thread(target=lambda: secrets.append(ensure_local_key(settings, database))) for _ in range(48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(secrets) == 48
    assert set(secrets) == {settings.local_key_path.read_text().strip()}
