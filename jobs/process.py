"""Start and end child processes so that none outlives its parent: separate session, parent-death signal, group kill."""

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
# The launcher sets its death signal and then becomes the program by exec, which keeps the signal; a preexec_fn could
# deadlock in a parent with threads. If the parent died before the call, the parent id has changed.
_LAUNCHER = (
    "import ctypes,os,sys;"
    "ctypes.CDLL(None,use_errno=True).prctl(1,int(sys.argv[1]));"
    "os.getppid()==int(sys.argv[2]) or os._exit(1);"
    "os.execvp(sys.argv[3],sys.argv[3:])"
)


class _Spawner:
    """One thread that starts all children and never ends: the kernel sends the death signal when the *thread* ends."""

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
            except BaseException as error:  # noqa: BLE001 - the caller gets it, and this thread must not end
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
"""Held while a child is started, until it is in `_started`."""
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
    """Start a program in a new session. It gets the signal `on_parent_death` when this process ends for any reason.

    Args:
        argv: The program and its arguments.
        env: The program's whole environment; None for that of this process.
        pass_fds: File descriptors that the program inherits.

    Raises:
        OSError: The program cannot be started.
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
    """Ask a child that `spawn` started to end, kill its process group after `grace_seconds`, and wait for it.

    Returns:
        The exit code; if a signal ended the child, the negative number of that signal.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the group is killed next
            process.wait(grace_seconds)
    kill_group(process)
    return process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill at once a child that `spawn` started and all processes of its group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # no process of the group is left
    except PermissionError:
        if psutil.pid_exists(process.pid):  # macOS raises it for a group of zombies
            raise


def kill_marked(name: str, value: str) -> None:
    """Kill all processes of this user that were started with a variable in their environment, and their forks,
    whatever their session and parent are now.

    Args:
        name: Name of the environment variable.
        value: A random value that no other process has.
    """
    for _ in range(_MARKED_PASSES):  # a process may fork while it is being killed
        found = [each for each in psutil.process_iter() if _has(each, name, value)]
        if not found:
            return
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself
                each.kill()
        psutil.wait_procs(found, timeout=_KILL_SECONDS)


def adopt_orphans() -> None:
    """Become the parent of each descendant whose parent ends, so that it can be found even after it changed its session
    and its environment. Only on Linux; elsewhere such processes become children of init."""
    global _adopts
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _adopts = True


def kill_adopted() -> None:
    """Kill the orphans that this process has adopted, and their descendants.

    An orphan is a child in another session that `spawn` did not start. Descendants of running children that `spawn`
    started are not killed. Does nothing unless `adopt_orphans` was called.
    """
    for _ in range(_ADOPTED_PASSES if _adopts else 0):  # children of a killed process are adopted in turn
        found = _adopted()
        if not found:
            return
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself
                each.kill()
        psutil.wait_procs(found, timeout=_KILL_SECONDS)  # this process is their parent and must reap them


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
    except (psutil.Error, OSError):  # it belongs to another user, or is gone
        return False


def die_with_parent(death_signal: signal.Signals) -> None:
    """Have the kernel send this process `death_signal` when the thread that started it ends.

    Only on Linux; elsewhere a child must notice the end of its standard input.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death_signal))


def status_in_words(status: int) -> str:
    """Describe how a process ended, from the exit code that Popen returns."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = ""
    if -status == signal.SIGKILL:
        hint = ", sent by the kernel because memory ran out, or by a user"
    elif -status in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
        hint = ", a fault in native code"
    return f"was ended by {name}{hint}"
