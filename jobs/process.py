"""Start and end child processes so that none is ever left behind: own session, parent-death signal, group kill."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MARKED_PASSES = 5
_ADOPTED_PASSES = 20
_KILL_SECONDS = 1.0
# The child sets its own death signal before it becomes the program: a preexec_fn could deadlock in a threaded parent.
# The signal survives exec. A parent that died before the call is seen by the changed parent id.
_LAUNCHER = (
    "import ctypes,os,sys;"
    "ctypes.CDLL(None,use_errno=True).prctl(1,int(sys.argv[1]));"
    "os.getppid()==int(sys.argv[2]) or os._exit(1);"
    "os.execvp(sys.argv[3],sys.argv[3:])"
)


class _Spawner:
    """One thread that starts every child and never ends: the kernel sends the death signal when the *thread* ends."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future[Any]]] = (
            queue.SimpleQueue()
        )
        self._pid = os.getpid()
        threading.Thread(target=self._work, name="spawner", daemon=True).start()

    def _work(self) -> None:
        while True:
            start, future = self._requests.get()
            try:
                future.set_result(start())
            except BaseException as error:  # noqa: BLE001 - the caller waits for it, and this thread must outlive it
                future.set_exception(error)

    def spawn(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        future: Future[subprocess.Popen[bytes]] = Future()
        self._requests.put((start, future))
        return future.result()


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()
_started: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()
"""The children that `spawn` started in this process."""
_started_lock = threading.Lock()
"""Held from before a child exists until it is in `_started`."""
_adopts = False
"""Whether `adopt_orphans` was called in this process."""


def _get_spawner() -> _Spawner:
    global _spawner
    with _spawner_lock:
        if _spawner is None or _spawner._pid != os.getpid():  # threads do not survive a fork
            _spawner = _Spawner()
        return _spawner


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: Any = subprocess.DEVNULL,
    stdout: Any = None,
    stderr: Any = None,
    pass_fds: Sequence[int] = (),
    cwd: str | os.PathLike[str] | None = None,
    on_parent_death: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own that gets `on_parent_death` when this process ends, however it ends.

    Args:
        argv: the program and its arguments.
        env: its whole environment; this process's where absent.
        pass_fds: file descriptors it inherits.

    Raises:
        OSError: it cannot be started.
    """
    launcher = [sys.executable, "-S", "-E", "-c", _LAUNCHER, str(int(on_parent_death)), str(os.getpid()), *argv]

    def start() -> subprocess.Popen[bytes]:
        with _started_lock:
            child = subprocess.Popen(
                launcher,
                env=None if env is None else dict(env),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=tuple(pass_fds),
                cwd=cwd,
                start_new_session=True,
            )
            _started.add(child)
        return child

    return _get_spawner().spawn(start)


def end(process: subprocess.Popen[bytes], grace_seconds: float) -> int:
    """Ask a child that `spawn` started to end, kill its whole group after the grace, and wait for it.

    Returns:
        Its exit code; negative, the signal that ended it.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the group is killed next
            process.wait(grace_seconds)
    kill_group(process)
    return process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that `spawn` started and every process of its group that is left, at once."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # nobody of the group is left
    except PermissionError:
        if psutil.pid_exists(process.pid):  # macOS says this of a group of zombies
            raise


def kill_marked(name: str, value: str) -> None:
    """Kill every process of this user's that was started, or forked from one that was, with a variable in its
    environment: whichever session it has made itself, and whoever became its parent.

    Args:
        name: of the environment variable.
        value: nobody else's, so a random one.
    """
    for _ in range(_MARKED_PASSES):  # one that is being killed may have forked meanwhile
        found = [each for each in psutil.process_iter() if _has(each, name, value)]
        if not found:
            return
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself
                each.kill()
        psutil.wait_procs(found, timeout=_KILL_SECONDS)


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends, so that none can slip away: not by a
    session of its own, nor by an environment of its own. Linux only; elsewhere they become children of init."""
    global _adopts
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _adopts = True


def kill_adopted() -> None:
    """Kill the orphans that this process has adopted, with everything below them.

    An orphan is a child of another session than this process's that `spawn` did not start. The processes below those
    that `spawn` started, and that live, are left alone. Does nothing where `adopt_orphans` was not called.
    """
    for _ in range(_ADOPTED_PASSES if _adopts else 0):  # what was below a killed one is an orphan then
        found = _adopted()
        if not found:
            return
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself
                each.kill()
        psutil.wait_procs(found, timeout=_KILL_SECONDS)  # they are children of this process, so it must reap them


def _adopted() -> list[psutil.Process]:
    with _started_lock:
        own = {child.pid for child in _started if child.returncode is None}
        orphans = [
            child for child in psutil.Process().children() if child.pid not in own and not _shares_session(child.pid)
        ]
    below: list[psutil.Process] = []
    for orphan in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            below += orphan.children(recursive=True)
    return [*orphans, *below]


def _shares_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == os.getsid(0)
    except ProcessLookupError:
        return True  # it is gone


def _has(process: psutil.Process, name: str, value: str) -> bool:
    try:
        return process.environ().get(name) == value
    except (psutil.Error, OSError):  # another user's, or gone
        return False


def die_with_parent(death_signal: signal.Signals) -> None:
    """Have the kernel send this process `death_signal` when the thread that started it ends. Linux only; elsewhere
    a child must watch its standard input for its end."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death_signal))


def status_in_words(status: int) -> str:
    """How a process ended, by the exit code that Popen gives."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = ""
    if -status == signal.SIGKILL:
        hint = ", from outside: by the kernel when memory ran out, or by a person"
    elif -status in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
        hint = ", a fault in native code"
    return f"was ended by {name}{hint}"
