"""The files of a user's module as at their first import, even if they change later."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import worker
from worker.training.modules.dependencies import Sources


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to import from; what was imported from it is forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def value_of(name: str, sources: Sources) -> int:
    """The value of a module when it is imported again."""
    importlib.invalidate_caches()
    for known in [known for known in sys.modules if known.partition(".")[0] == name]:
        del sys.modules[known]
    with sources.importing():
        found: int = importlib.import_module(name).VALUE
    return found


def test_a_later_attempt_imports_the_files_of_the_first(folder: Path, tmp_path: Path) -> None:
    package = folder / "stoker_helpers"
    package.mkdir()
    (package / "__init__.py").write_text("from stoker_helpers.deep import VALUE")
    (package / "deep.py").write_bytes("# -*- coding: latin-1 -*-\nNAME = 'Núñez'\nVALUE = 1".encode("latin-1"))
    first = Sources([folder])
    assert value_of("stoker_helpers", first) == 1
    first.carry(tmp_path)
    (package / "deep.py").write_text("VALUE = 2")
    assert value_of("stoker_helpers", Sources.restore([folder], tmp_path)) == 1
    assert value_of("stoker_helpers", Sources([folder])) == 2


def test_a_file_that_is_not_carried_is_read_as_it_stands(folder: Path, tmp_path: Path) -> None:
    (folder / "stoker_helper.py").write_text("VALUE = 1")
    sources = Sources.restore([folder], tmp_path)
    assert value_of("stoker_helper", sources) == 1
    (folder / "stoker_helper.py").write_text("VALUE = 2")
    assert value_of("stoker_helper", sources) == 1


def test_only_the_users_own_files_are_kept(tmp_path: Path) -> None:
    sources = Sources([tmp_path, Path(worker.__file__).parents[1]])
    assert sources.covers(str(tmp_path / "helper.py"))
    assert not sources.covers(str(tmp_path / ".venv/lib/python3.11/site-packages/torch/__init__.py"))
    assert not sources.covers(str(Path(worker.__file__).resolve()))
    assert not sources.covers("/usr/lib/python3.11/json/__init__.py")
