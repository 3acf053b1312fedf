"""Children that are kept alive, and ended without a trace."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from scheduler.embedded.supervisor import Program, Supervisor, describe_exit, last_line, rotate_log
from tests.conftest import wait_until


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    """A supervisor that is stopped afterwards."""
    running = Supervisor()
    yield running
    running.stop()


def program(folder: Path, name: str, code: str, *, grace_seconds: float = 5.0) -> Program:
    """A Python program that writes its process id to `<name>.pid` once it is up."""
    head = f"import os, signal, sys, time; open({str(folder / name)!r} + '.pid', 'a').write(f'{{os.getpid()}}\\n'); "
    return Program(name, [sys.executable, "-c", head + code], {}, folder / f"{name}.log", grace_seconds)


def pids(folder: Path, name: str) -> list[int]:
    """Of every start so far."""
    path = folder / f"{name}.pid"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def is_gone(pid: int) -> bool:
    """Whether it runs no more; what init has not yet reaped counts as gone."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_up(folder: Path, name: str, starts: int) -> Callable[[], bool]:
    """Whether it has been started so often."""
    return lambda: len(pids(folder, name)) >= starts


def test_a_child_that_is_killed_is_started_again(tmp_path: Path, supervisor: Supervisor) -> None:
    """Else one crash would end the service for good."""
    supervisor.start(program(tmp_path, "a", "time.sleep(600)"))
    for starts in (1, 2):
        wait_until(is_up(tmp_path, "a", starts), f"start {starts}")
        psutil.Process(pids(tmp_path, "a")[-1]).kill()
    wait_until(is_up(tmp_path, "a", 3), "the third start")
    assert supervisor.num_quick_deaths() == {"a": 2}


def test_children_end_in_reverse_order_and_with_what_they_started(tmp_path: Path, supervisor: Supervisor) -> None:
    """Redis must outlive those who use it; a grandchild must not hold a GPU for ever."""
    note = f"open({str(tmp_path / 'order')!r}, 'a').write(sys.argv[0] or 'x')"
    for name in ("first", "second"):
        ending = (
            f"signal.signal(signal.SIGTERM, lambda *_: ({note.replace('sys.argv[0]', repr(name[0]))}, sys.exit(0)))"
        )
        child = "import subprocess; child = subprocess.Popen(['sleep', '600']); "
        wait = f"open({str(tmp_path / name)!r} + '.child', 'w').write(str(child.pid)); signal.pause()"
        supervisor.start(program(tmp_path, name, f"{child}{ending}; {wait}"))
    wait_until(lambda: all((tmp_path / f"{name}.child").exists() for name in ("first", "second")), "both are up")
    supervisor.stop()
    assert (tmp_path / "order").read_text() == "sf"
    for name in ("first", "second"):
        child_pid = int((tmp_path / f"{name}.child").read_text())
        wait_until(lambda pid=child_pid: is_gone(pid), f"the child of {name} is gone")


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path, supervisor: Supervisor) -> None:
    """Ending must end."""
    supervisor.start(program(tmp_path, "deaf", "signal.signal(15, signal.SIG_IGN); time.sleep(600)", grace_seconds=0.2))
    wait_until(is_up(tmp_path, "deaf", 1), "it is up")
    supervisor.stop()
    assert not psutil.pid_exists(pids(tmp_path, "deaf")[0])


def test_before_each_start_is_told_how_often_it_died(tmp_path: Path, supervisor: Supervisor) -> None:
    """Redis's damaged files are put aside by that count."""
    told: list[int] = []
    dying = program(tmp_path, "dying", "sys.exit('this is why')")
    supervisor.start(Program("dying", dying.argv, {}, dying.log, 1.0, told.append))
    wait_until(lambda: len(told) >= 3, "three starts")
    assert told[:3] == [0, 1, 2]
    assert last_line(dying.log) == "this is why"


def test_exits_are_described() -> None:
    """The person reads the log's words, not the kernel's numbers."""
    assert describe_exit(3) == "status 3"
    assert describe_exit(-signal.SIGKILL) == "killed by SIGKILL"


def test_large_logs_are_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack that runs for years must not fill the disk with its logs."""
    monkeypatch.setattr("scheduler.embedded.supervisor._KEPT_LOG_BYTES", 4)
    log = tmp_path / "a.log"
    for number in range(6):
        log.write_text(f"log {number}")
        rotate_log(log)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.log.1": "log 5",
        "a.log.2": "log 4",
        "a.log.3": "log 3",
    }
    rotate_log(log)
    assert last_line(log) == ""
