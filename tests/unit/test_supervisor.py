"""The supervisor of child processes: restarts, their pauses, and an orderly end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from jobs import process
from jobs.retries import Backoff
from jobs.supervisor import Program, Supervisor
from tests.conftest import wait_until

FOREVER = "time.sleep(600)"
DEAF = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); up(); {FOREVER}"
WITH_CHILD = "import subprocess; child = subprocess.Popen(['sleep', '600']); note('child', child.pid); up()"


class Workshop:
    """A supervisor in a separate thread, and small Python programs for it."""

    def __init__(self, folder: Path, *, settled_seconds: float = 60.0) -> None:
        self.folder = folder
        self.supervisor = Supervisor(Backoff(0.01, 0.1), settled_seconds=settled_seconds)
        self.thread = threading.Thread(target=self.supervisor.run)
        self.thread.start()

    def program(
        self,
        name: str,
        code: str = f"up(); {FOREVER}",
        *,
        grace_seconds: float = 300.0,
        before_start: Callable[[int], object] = lambda _num_quick_deaths: None,
        final_statuses: dict[int, str] | None = None,
    ) -> Program:
        """A program that can note facts about itself in `<name>.<fact>` and that calls `up` when it is up."""
        head = (
            "import os, signal, sys, time\n"
            "def note(fact, value):\n"
            f"    with open({str(self.folder / name)!r} + '.' + fact, 'a') as file: file.write(f'{{value}}\\n')\n"
            "def up(): note('pid', os.getpid())\n"
        )

        def start(num_quick_deaths: int) -> Popen[bytes]:
            before_start(num_quick_deaths)
            return process.spawn([sys.executable, "-S", "-c", head + code])

        return Program(name, start, grace_seconds, final_statuses or {})

    def notes(self, name: str, fact: str) -> list[int]:
        path = self.folder / f"{name}.{fact}"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_up(self, *names: str, starts: int = 1) -> None:
        for name in names:
            wait_until(lambda name=name: len(self.notes(name, "pid")) >= starts, f"start {starts} of {name}")

    def stop(self) -> None:
        self.supervisor.stop()
        self.thread.join()


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path)
    yield made
    made.supervisor.kill()
    made.thread.join()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even if init has not reaped it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# -- restarts


def test_a_program_that_is_killed_is_started_again(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    workshop.supervisor.start(workshop.program("a"))
    for starts in (1, 2):
        workshop.wait_up("a", starts=starts)
        os.kill(workshop.notes("a", "pid")[-1], signal.SIGKILL)
    workshop.wait_up("a", starts=3)
    assert workshop.supervisor.num_quick_deaths() == {"a": 2}
    assert "a was ended by SIGKILL, sent by the kernel because memory ran out, or by a user" in caplog.text
    assert "it is started again in 0.0 s" in caplog.text


def test_each_start_gets_the_number_of_quick_deaths(workshop: Workshop) -> None:
    restarts: list[int] = []
    workshop.supervisor.start(workshop.program("dying", "sys.exit(3)", before_start=restarts.append))
    wait_until(lambda: len(restarts) >= 4, "four starts")
    assert restarts[:4] == [0, 1, 2, 3]


def test_deaths_of_a_program_that_had_settled_do_not_count(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, settled_seconds=0.0)
    restarts: list[int] = []
    workshop.supervisor.start(workshop.program("old", "sys.exit(3)", before_start=restarts.append))
    wait_until(lambda: len(restarts) >= 3, "three starts")
    workshop.stop()
    assert set(restarts) == {0}


def test_what_a_dead_program_started_is_killed_before_its_successor(workshop: Workshop) -> None:
    was_gone: list[bool] = []

    def look(num_quick_deaths: int) -> None:
        if num_quick_deaths == 1:
            (child,) = workshop.notes("parent", "child")
            psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=300)
            was_gone.append(is_gone(child))

    workshop.supervisor.start(workshop.program("parent", f"{WITH_CHILD}; {FOREVER}", before_start=look))
    workshop.wait_up("parent")
    os.kill(workshop.notes("parent", "pid")[0], signal.SIGKILL)
    wait_until(lambda: was_gone, "the second start")
    assert was_gone == [True]


def test_a_program_that_cannot_be_started_is_tried_again(workshop: Workshop) -> None:
    def fail_twice(num_quick_deaths: int) -> None:
        if num_quick_deaths < 2:
            raise OSError("out of processes")

    workshop.supervisor.start(workshop.program("late", before_start=fail_twice))
    workshop.wait_up("late")
    assert workshop.supervisor.num_quick_deaths() == {"late": 2}


def test_a_program_starts_later_when_there_is_no_thread_to_wait_for_it(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_start, failures = threading.Thread.start, [1, 1]

    def start(thread: threading.Thread) -> None:
        if thread.name == "waiter" and failures:
            failures.pop()
            raise RuntimeError("can't start new thread")
        real_start(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    workshop.supervisor.start(workshop.program("late"))
    wait_until(lambda: workshop.supervisor.num_quick_deaths() == {"late": 2}, "two starts have failed")
    wait_until(lambda: any(not is_gone(pid) for pid in workshop.notes("late", "pid")), "the third succeeds")


def test_a_final_status_ends_a_program_and_the_last_one_ends_the_run(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    final = {76: "its slot belongs to another worker now"}
    first = workshop.program("first", "up(); sys.exit(76)", final_statuses=final)
    second = workshop.program("second", f"signal.signal(15, lambda *_: sys.exit(76)); up(); {FOREVER}")
    workshop.supervisor.start(first, Program("second", second.start, 300.0, final))
    workshop.wait_up("first", "second")
    wait_until(
        lambda: "first is not started again: its slot belongs to another worker now" in caplog.text, "it is said"
    )
    assert workshop.thread.is_alive(), "the other program goes on"
    os.kill(workshop.notes("second", "pid")[0], signal.SIGTERM)
    workshop.thread.join()
    assert [len(workshop.notes(name, "pid")) for name in ("first", "second")] == [1, 1]


# -- the end


def test_groups_end_in_reverse_order_with_all_their_processes(workshop: Workshop) -> None:
    order = workshop.folder / "order"
    for name in ("first", "second"):
        ending = f"lambda *_: (open({str(order)!r}, 'a').write('{name} '), sys.exit(0))"
        code = f"signal.signal(signal.SIGTERM, {ending}); {WITH_CHILD}; {FOREVER}"
        workshop.supervisor.start(workshop.program(name, code))
    workshop.wait_up("first", "second")
    workshop.stop()
    assert order.read_text() == "second first "
    for name in ("first", "second"):
        (child,) = workshop.notes(name, "child")
        wait_until(lambda child=child: is_gone(child), f"the child of {name} is gone")


def test_programs_of_one_group_end_at_the_same_time(workshop: Workshop) -> None:
    """Each ends only once the other was asked to end, too."""
    code = (
        "def end(*_):\n"
        "    note('asked', 1)\n"
        f"    while not os.path.exists({str(workshop.folder)!r} + '/OTHER.asked'): time.sleep(0.01)\n"
        "    sys.exit(0)\n"
        f"signal.signal(signal.SIGTERM, end); up(); {FOREVER}"
    )
    programs = [workshop.program(a, code.replace("OTHER", b)) for a, b in (("a", "b"), ("b", "a"))]
    workshop.supervisor.start(*programs)
    workshop.wait_up("a", "b")
    workshop.stop()
    assert workshop.notes("a", "asked") == workshop.notes("b", "asked") == [1]


def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(workshop: Workshop) -> None:
    workshop.supervisor.start(workshop.program("deaf", DEAF, grace_seconds=0.2))
    workshop.wait_up("deaf")
    workshop.stop()
    assert not psutil.pid_exists(workshop.notes("deaf", "pid")[0])


def test_kill_ends_programs_in_the_middle_of_their_grace(workshop: Workshop) -> None:
    workshop.supervisor.start(
        workshop.program("deaf", f"signal.signal(15, lambda *_: note('asked', 1)); up()\nwhile True: {FOREVER}")
    )
    workshop.wait_up("deaf")
    workshop.supervisor.stop()
    wait_until(lambda: workshop.notes("deaf", "asked"), "SIGTERM arrives")
    assert workshop.thread.is_alive()
    workshop.supervisor.kill()
    workshop.thread.join()
    assert not psutil.pid_exists(workshop.notes("deaf", "pid")[0])


def test_a_program_that_waits_for_its_restart_does_not_delay_the_end(tmp_path: Path) -> None:
    supervisor = Supervisor(Backoff(600.0, 600.0), settled_seconds=60.0)
    supervisor.start(Program("dead", lambda _: process.spawn(["false"]), 600.0))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    wait_until(lambda: supervisor.num_quick_deaths() == {"dead": 1}, "it has died")
    supervisor.stop()
    thread.join()


def test_a_signal_handler_may_stop_and_kill(tmp_path: Path) -> None:
    """As in the worker of a host, where `run` has the main thread."""
    workshop = Workshop(tmp_path)
    workshop.stop()  # only its programs are used
    supervisor = Supervisor(Backoff(0.01, 0.1), settled_seconds=60.0)
    supervisor.start(
        workshop.program("deaf", f"signal.signal(15, lambda *_: note('asked', 1)); up()\nwhile True: {FOREVER}")
    )
    former = {
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda *_: supervisor.stop()),
        signal.SIGUSR2: signal.signal(signal.SIGUSR2, lambda *_: supervisor.kill()),
    }

    def send_signals() -> None:
        workshop.wait_up("deaf")
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: workshop.notes("deaf", "asked"), "SIGTERM arrives")
        os.kill(os.getpid(), signal.SIGUSR2)

    sender = threading.Thread(target=send_signals)
    try:
        sender.start()
        supervisor.run()
        sender.join()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    assert not psutil.pid_exists(workshop.notes("deaf", "pid")[0])


def test_an_error_of_ours_ends_all_programs_and_is_raised(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    workshop.stop()  # only its programs are used
    supervisor = Supervisor(Backoff(0.01, 0.1), settled_seconds=60.0)

    def fail(num_quick_deaths: int) -> None:
        workshop.wait_up("good")
        raise ZeroDivisionError

    supervisor.start(workshop.program("good"), workshop.program("bad", before_start=fail))
    with pytest.raises(ZeroDivisionError):
        supervisor.run()
    assert not psutil.pid_exists(workshop.notes("good", "pid")[0])
