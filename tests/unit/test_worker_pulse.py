"""What a runner's threads say they do: begins at once, progress in a while, and bytes where a library says nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.config.activities import Activity
from tests.conftest import wait_until
from worker.wire.pulse import Beat, Pulse, moved_bytes

READ = Beat("reader", Activity.READ, chunk=8)


@contextmanager
def thread(name: str, body: Callable[[], None]) -> Iterator[None]:
    """Run a body in a thread of this name, which is the stage that it speaks for."""
    runs = threading.Thread(target=body, name=name, daemon=True)
    runs.start()
    yield
    runs.join(60.0)
    assert not runs.is_alive()


def test_a_begin_is_told_at_once_and_the_same_again_is_not() -> None:
    heard: list[Beat] = []
    pulse = Pulse(heard.append, beat_seconds=3600.0)
    pulse.say(READ)
    pulse.say(READ)
    pulse.say(Beat("reader", Activity.READ, chunk=16))
    assert heard == [READ, Beat("reader", Activity.READ, chunk=16)]


def test_an_end_and_progress_are_told_in_a_while() -> None:
    heard: list[Beat] = []
    pulse = Pulse(heard.append, beat_seconds=0.01)

    def read() -> None:
        with pulse.doing(Activity.READ, chunk=8):
            pulse.at(Activity.READ, chunk=8)

    with pulse.ticking():
        with thread("reader", read):
            pass
        wait_until(lambda: heard[-1] == Beat("reader"), "the end is told")
    assert heard[0] == READ


def test_who_is_not_eager_leaves_all_to_the_ticker() -> None:
    heard: list[Beat] = []
    pulse = Pulse(heard.append, beat_seconds=0.01, is_eager=False)
    pulse.say(READ)
    assert heard == []
    with pulse.ticking():
        wait_until(lambda: heard == [READ], "it is told")


def test_what_an_exception_ended_stays_said() -> None:
    heard: list[Beat] = []
    pulse = Pulse(heard.append, beat_seconds=0.01)

    def fail() -> None:
        with pytest.raises(ValueError, match="bad row"), pulse.doing(Activity.ENCODE, chunk=8):
            raise ValueError("bad row")

    with pulse.ticking(), thread("encoder", fail):
        pass
    assert heard[-1] == Beat("encoder", Activity.ENCODE, chunk=8)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count a process's bytes")
def test_bytes_that_move_are_progress_of_a_load_and_idling_is_not(tmp_path: Path) -> None:
    heard: list[Beat] = []
    pulse = Pulse(heard.append, beat_seconds=0.01)
    weights = tmp_path / "weights"
    weights.write_bytes(b"\0" * 2**21)
    told, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def load() -> None:
        with pulse.doing(Activity.LOAD):
            told.set()
            assert go_on.wait(60.0)
            weights.read_bytes()
            assert ended.wait(60.0)

    with pulse.ticking(), thread("main", load):
        assert told.wait(60.0)
        wait_until(lambda: Beat("main", Activity.LOAD) in heard, "the load is told")
        before = moved_bytes()
        num_told = len(heard)
        go_on.set()
        wait_until(lambda: len(heard) > num_told, "the bytes are told as progress")
        assert moved_bytes() - before >= 2**21
        ended.set()
