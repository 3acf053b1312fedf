"""What each thread of a process is doing, told to whoever watches for progress.

A thread says that it begins something, and then that it goes on. Where it is inside another library for long, loading a
model say, bytes that are read and written are its progress; processor time is not, since an endless loop takes it too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs.config.activities import Activity

_MOVED_BYTES = 2**20
"""Bytes read or written that count as progress; what this module reads and tells itself is far less."""
_ALONE = frozenset({Activity.LOAD, Activity.START, Activity.CHECKPOINT, Activity.SAVE})
"""Nothing else goes on in the process meanwhile, so what any of its threads reads and writes is progress: libraries
load weights with threads of their own."""
_IO_KEYS = (b"rchar:", b"wchar:", b"read_bytes:")


@dataclass(frozen=True, slots=True)
class Beat:
    """A thread does something and has just begun it or made progress; or, without an activity, it waits."""

    stage: str = "main"
    """Name of the thread, or of a process that reports through it."""
    activity: Activity | None = None
    chunk: int | None = None
    """First row of the chunk it is about."""
    step: int | None = None
    """Number of the training step it is about."""


class _Stage:
    """One thread's state. Only that thread changes it; the ticker reads it."""

    def __init__(self, beat: Beat) -> None:
        self.beat, self.told = beat, beat
        self.told_at = 0.0
        self.marks = self.marks_told = 0
        is_own = beat.stage == threading.current_thread().name
        self.native_id = threading.get_native_id() if is_own else None
        """None of another process, which counts its bytes itself."""
        self.moved_bytes = 0


class Pulse:
    """Tells beats: a begin at once, progress and ends every `beat_seconds`. Safe from any thread."""

    def __init__(self, tell: Callable[[Beat], None], *, beat_seconds: float = 1.0, is_eager: bool = True) -> None:
        """
        Args:
            tell: gets each beat; called from any thread, one at a time.
            beat_seconds: the longest between a progress and the beat that tells of it.
            is_eager: whether a begin is told at once, so that what ends the process in that moment is known; else it
                waits as progress does.
        """
        self._tell, self._beat_seconds, self._is_eager = tell, beat_seconds, is_eager
        self._lock = threading.Lock()
        self._stages: dict[str, _Stage] = {}
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None

    @contextmanager
    def doing(self, activity: Activity | None, *, chunk: int | None = None, step: int | None = None) -> Iterator[None]:
        """While inside, the calling thread does this, or waits where it is None; afterwards what it did before.

        Where an exception ends it, this stays as it is: whoever hears of it is to know what was being done.
        """
        name = threading.current_thread().name
        before = self._stage(name).beat
        self.say(Beat(name, activity, chunk, step))
        yield
        self._stage(name).beat = before

    def at(self, activity: Activity | None, *, chunk: int | None = None, step: int | None = None) -> None:
        """The calling thread does this from now on; the same again is progress, and `None` that it waits."""
        self.say(Beat(threading.current_thread().name, activity, chunk, step))

    def say(self, beat: Beat) -> None:
        """Have a stage begin something; the same again is progress. What is new is told at once."""
        stage = self._stage(beat.stage)
        is_new = beat != stage.told
        stage.beat = beat
        stage.marks += 1
        if not self._is_eager:
            return
        if is_new or time.monotonic() - stage.told_at >= self._beat_seconds:
            self._send(stage)

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """While inside, a thread of its own tells what threads do that have no time to say it themselves."""
        self._ended.clear()
        self._ticker = threading.Thread(target=self._tick, name="pulse", daemon=True)
        self._ticker.start()
        try:
            yield
        finally:
            self._ended.set()
            self._ticker.join()
            with self._lock:
                self._stages.clear()

    def _stage(self, name: str) -> _Stage:
        with self._lock:
            stage = self._stages.get(name)
            if stage is None:
                stage = self._stages[name] = _Stage(Beat(name))
            return stage

    def _send(self, stage: _Stage) -> None:
        with self._lock:
            stage.told, stage.told_at, stage.marks_told = stage.beat, time.monotonic(), stage.marks
            self._tell(stage.told)

    def _tick(self) -> None:
        own_id = threading.get_native_id()
        while not self._ended.wait(self._beat_seconds):
            with self._lock:
                stages = list(self._stages.values())
            for stage in stages:
                if stage.beat.activity is not None and stage.native_id is not None:
                    self._count_bytes(stage, own_id)
                if stage.beat != stage.told or stage.marks != stage.marks_told:
                    self._send(stage)

    def _count_bytes(self, stage: _Stage, own_id: int) -> None:
        is_alone = stage.beat.activity in _ALONE
        moved = moved_bytes() - moved_bytes(own_id) if is_alone else moved_bytes(stage.native_id)
        if moved - stage.moved_bytes >= _MOVED_BYTES or moved < stage.moved_bytes:
            stage.moved_bytes = moved
            stage.marks += 1


def moved_bytes(thread_id: int | None = None) -> int:
    """Bytes that a thread of this process, or all of it, has read and written; 0 where the system does not say."""
    where = "io" if thread_id is None else f"task/{thread_id}/io"
    try:
        lines = (Path("/proc/self") / where).read_bytes().splitlines()
    except OSError:  # no such file system, or the thread is another process's
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(_IO_KEYS))
