"""The import paths of users' programs and modules before `import stoker`: they work for one release, with a warning."""

from __future__ import annotations

import importlib
import sys

import pytest

import stoker
from scheduler.client.http_client import ApiError, StokerClient


@pytest.mark.parametrize(
    ("module", "names"), [("module", ["Parts", "Phase", "Setup", "Rows"]), ("rehearsal", ["rehearse", "Rehearsal"])]
)
def test_the_old_places_of_a_modules_types_warn(module: str, names: list[str]) -> None:
    sys.modules.pop(f"worker.training.{module}", None)
    with pytest.warns(DeprecationWarning, match=r"from stoker\.training"):
        old = importlib.import_module(f"worker.training.{module}")
    for name in names:
        assert getattr(old, name) is getattr(stoker.training, name)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = old.nope


def test_the_old_place_of_the_client_warns() -> None:
    from scheduler import client

    with pytest.warns(DeprecationWarning, match=r"use stoker\.Client"):
        assert client.StokerClient is StokerClient
    with pytest.warns(DeprecationWarning, match="ApiError"):
        from scheduler.client import ApiError as OldError
    assert OldError is ApiError is stoker.ApiError
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = client.nope
