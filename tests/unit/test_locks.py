"""Locks between processes: exclusive, released with the descriptor, and with a limit on the wait."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from jobs import locks


def test_a_lock_is_exclusive_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    first, second = (locks.open_lock(tmp_path / "lock") for _ in range(2))
    assert locks.try_take(first)
    assert not locks.try_take(second)
    os.close(first)
    assert locks.try_take(second)
    os.close(second)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_wait_ends_when_the_holder_does_or_when_its_time_is_over(tmp_path: Path) -> None:
    first, second = (locks.open_lock(tmp_path / "lock") for _ in range(2))
    locks.take(first)
    began = time.monotonic()
    assert not locks.take_within(second, 0.1)
    assert time.monotonic() - began >= 0.1
    threading.Timer(0.05, os.close, (first,)).start()
    assert locks.take_within(second, 600.0)
    os.close(second)


def test_sharers_stand_beside_each_other_and_keep_an_owner_out(tmp_path: Path) -> None:
    first, second, third = (locks.open_lock(tmp_path / "lock") for _ in range(3))
    locks.share(first)
    locks.share(second)
    assert not locks.try_take(third)
    for descriptor in (first, second):
        os.close(descriptor)
    with locks.held(third):
        pass
