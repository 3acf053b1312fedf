"""Activities of a runner's threads: starts are reported at once, progress later, and bytes if a library is silent."""

from __future__ import annotations

import threading
import time
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


def test_a_new_activity_is_reported_at_once_and_only_once() -> None:
    beats: list[Beat] = []
    pulse = Pulse(beats.append, beat_seconds=3600.0)
    pulse.record(READ)
    pulse.record(READ)
    pulse.record(Beat("reader", Activity.READ, chunk=16))
    assert beats == [READ, Beat("reader", Activity.READ, chunk=16)]


def test_an_end_and_progress_are_reported_after_a_while() -> None:
    beats: list[Beat] = []
    pulse = Pulse(beats.append, beat_seconds=0.01)

    def read() -> None:
        with pulse.doing(Activity.READ, chunk=8):
            pulse.at(Activity.READ, chunk=8)

    with pulse.ticking():
        with thread("reader", read):
            pass
        wait_until(lambda: beats[-1] == Beat("reader"), "the end is told")
    assert beats[0] == READ


def test_who_is_not_eager_leaves_all_to_the_ticker() -> None:
    beats: list[Beat] = []
    pulse = Pulse(beats.append, beat_seconds=0.01, is_eager=False)
    pulse.record(READ)
    assert beats == []
    with pulse.ticking():
        wait_until(lambda: beats == [READ], "it is told")


def test_an_activity_that_an_exception_ended_stays_reported() -> None:
    beats: list[Beat] = []
    pulse = Pulse(beats.append, beat_seconds=0.01)

    def fail() -> None:
        with pytest.raises(ValueError, match="bad row"), pulse.doing(Activity.ENCODE, chunk=8):
            raise ValueError("bad row")

    with pulse.ticking(), thread("encoder", fail):
        pass
    assert beats[-1] == Beat("encoder", Activity.ENCODE, chunk=8)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count a process's bytes")
def test_bytes_that_move_are_progress_of_a_load_and_idling_is_not(tmp_path: Path) -> None:
    beats: list[Beat] = []
    pulse = Pulse(beats.append, beat_seconds=0.01)
    weights = tmp_path / "weights"
    weights.write_bytes(b"\0" * 2**21)
    reported, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def load() -> None:
        with pulse.doing(Activity.LOAD):
            reported.set()
            assert go_on.wait(60.0)
            weights.read_bytes()
            assert ended.wait(60.0)

    with pulse.ticking(), thread("main", load):
        assert reported.wait(60.0)
        wait_until(lambda: Beat("main", Activity.LOAD) in beats, "the load is told")
        before = moved_bytes()
        num_beats = len(beats)
        go_on.set()
        wait_until(lambda: len(beats) > num_beats, "the bytes are told as progress")
        assert moved_bytes() - before >= 2**21
        ended.set()


def test_the_seconds_of_an_activity_are_those_of_all_threads() -> None:
    pulse = Pulse(lambda beat: None)
    inside: list[float] = []

    def work() -> None:
        with pulse.doing(Activity.ENCODE):
            started = time.monotonic()
            with pulse.doing(Activity.READ):
                pass
            pulse.at(Activity.ENCODE)
            inside.append(time.monotonic() - started)

    threads = [threading.Thread(target=work) for _ in range(2)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = time.monotonic() - started
    assert 0 < pulse.seconds(Activity.ENCODE) + pulse.seconds(Activity.READ) <= 2 * whole
    assert pulse.seconds(Activity.ENCODE) + pulse.seconds(Activity.READ) >= sum(inside)
    assert pulse.seconds(Activity.COMMIT) == 0
    pulse.at(Activity.COMMIT)  # still going on
    assert pulse.seconds(Activity.COMMIT) > 0
