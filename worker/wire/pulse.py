"""Reports what each thread of a process is doing to the process that watches its progress.

A thread reports when it begins something and when it makes progress. During long calls into other libraries, such as
loading a model, bytes read and written count as progress; CPU time does not, since an endless loop uses it too.
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
"""Number of bytes read or written that counts as progress; this module itself reads and writes far less."""
_ALONE = frozenset({Activity.LOAD, Activity.START, Activity.CHECKPOINT, Activity.SAVE})
"""Activities during which the process does nothing else, so that bytes moved by any of its threads count as progress:
libraries load weights in their own threads."""
_IO_KEYS = (b"rchar:", b"wchar:", b"read_bytes:")


@dataclass(frozen=True, slots=True)
class Beat:
    """A thread has just begun an activity or made progress with it; without an activity, the thread waits."""

    stage: str = "main"
    """Name of the thread, or of a process that reports through it."""
    activity: Activity | None = None
    chunk: int | None = None
    """First row of the chunk that the thread works on."""
    step: int | None = None
    """Number of the training step that the thread works on."""


class _Stage:
    """One thread's state. That thread changes it, and threads that compute for it; the ticker reads it."""

    def __init__(self, beat: Beat) -> None:
        self.beat, self.sent = beat, beat
        self.sent_at = 0.0
        self.since = time.monotonic()
        self.seconds: dict[Activity | None, float] = {}
        """How long each activity has lasted so far, without the present one."""
        self.marks = self.marks_sent = 0
        is_own = beat.stage == threading.current_thread().name
        self.native_id = threading.get_native_id() if is_own else None
        """Id of the thread; None for another process, which counts its bytes itself."""
        self.moved_bytes = 0

    def turn_to(self, beat: Beat) -> None:
        """The thread does something else from now on, or makes progress."""
        if beat.activity != self.beat.activity:
            now = time.monotonic()
            self.seconds[self.beat.activity] = self.seconds.get(self.beat.activity, 0.0) + now - self.since
            self.since = now
        self.beat = beat


class Pulse:
    """Sends beats: a beginning at once, progress and ends every `beat_seconds`. Safe to use from any thread."""

    def __init__(self, send: Callable[[Beat], None], *, beat_seconds: float = 1.0, is_eager: bool = True) -> None:
        """
        Args:
            send: Receives each beat; called from any thread, but one call at a time.
            beat_seconds: The longest time between progress and the beat that reports it.
            is_eager: Whether a beginning is reported at once, so that it is known what the process was doing if it dies
                in that moment; otherwise it waits as progress does.
        """
        self._send_beat, self._beat_seconds, self._is_eager = send, beat_seconds, is_eager
        self._lock = threading.Lock()
        self._stages: dict[str, _Stage] = {}
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None

    @contextmanager
    def doing(self, activity: Activity | None, *, chunk: int | None = None, step: int | None = None) -> Iterator[None]:
        """Inside, the calling thread does this, or waits if it is None; afterwards it does again what it did before.

        After an exception the activity stays as it was, so that the handler of the error can see it.
        """
        name = threading.current_thread().name
        before = self._stage(name).beat
        self.record(Beat(name, activity, chunk, step))
        yield
        self._stage(name).turn_to(before)

    def at(self, activity: Activity | None, *, chunk: int | None = None, step: int | None = None) -> None:
        """Record that the calling thread now does this, or waits if None; the same activity again is progress."""
        self.record(Beat(threading.current_thread().name, activity, chunk, step))

    def record(self, beat: Beat) -> None:
        """Record a beat. The same beat again is progress; a new one is reported at once."""
        stage = self._stage(beat.stage)
        is_new = beat != stage.sent
        stage.turn_to(beat)
        stage.marks += 1
        if not self._is_eager:
            return
        if is_new or time.monotonic() - stage.sent_at >= self._beat_seconds:
            self._send(stage)

    def seconds(self, activity: Activity) -> float:
        """How long the threads have done something, in sum, since `ticking` began."""
        now = time.monotonic()
        with self._lock:
            stages = list(self._stages.values())
        return sum(
            stage.seconds.get(activity, 0.0) + (now - stage.since if stage.beat.activity == activity else 0.0)
            for stage in stages
        )

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Inside, a separate thread sends the beats of threads that are busy inside a library."""
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
            stage.sent, stage.sent_at, stage.marks_sent = stage.beat, time.monotonic(), stage.marks
            self._send_beat(stage.sent)

    def _tick(self) -> None:
        own_id = threading.get_native_id()
        while not self._ended.wait(self._beat_seconds):
            with self._lock:
                stages = list(self._stages.values())
            for stage in stages:
                if stage.beat.activity is not None and stage.native_id is not None:
                    self._count_bytes(stage, own_id)
                if stage.beat != stage.sent or stage.marks != stage.marks_sent:
                    self._send(stage)

    def _count_bytes(self, stage: _Stage, own_id: int) -> None:
        is_alone = stage.beat.activity in _ALONE
        moved = moved_bytes() - moved_bytes(own_id) if is_alone else moved_bytes(stage.native_id)
        if moved - stage.moved_bytes >= _MOVED_BYTES or moved < stage.moved_bytes:
            stage.moved_bytes = moved
            stage.marks += 1


def moved_bytes(thread_id: int | None = None) -> int:
    """Bytes read and written by a thread of this process, or by the whole process; 0 if not reported by the system."""
    where = "io" if thread_id is None else f"task/{thread_id}/io"
    try:
        lines = (Path("/proc/self") / where).read_bytes().splitlines()
    except OSError:  # there is no such file system, or the thread belongs to another process
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(_IO_KEYS))
