"""Child processes: each in its own group; it ends with its parent and with its group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from jobs import process
from tests.conftest import wait_until

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT = """
import sys, threading
from jobs import process
def start():
    child = process.spawn([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
thread = threading.Thread(target=start)  # the death signal must mean the process, not the thread that asked
thread.start()
thread.join()
threading.Event().wait()
"""
FORKING = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    """Whether no living process has this id."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_child_dies_with_its_killed_parent_but_not_with_its_thread() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until(lambda: "sleep" in " ".join(psutil.Process(child).cmdline()), "the child became its program")
        assert not gone(child)
        parent.kill()
        wait_until(lambda: gone(child), "the child died with its parent")


def test_end_takes_the_whole_group(tmp_path: Path) -> None:
    child = process.spawn([sys.executable, "-c", FORKING], stdout=subprocess.PIPE)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    assert process.end(child, grace_seconds=10.0) == -signal.SIGTERM
    wait_until(lambda: gone(grandchild), "the grandchild is gone too")
    child.stdout.close()


def test_a_child_that_ignores_the_request_is_killed_after_the_grace() -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    child = process.spawn([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert process.end(child, grace_seconds=0.1) == -signal.SIGKILL
    child.stdout.close()


def test_a_program_that_does_not_exist_ends_at_once() -> None:
    child = process.spawn(["/no/such/program"], stderr=subprocess.DEVNULL)
    assert child.wait(300) != 0


def test_many_threads_may_spawn() -> None:
    children: list[subprocess.Popen[bytes]] = []
    threads = [threading.Thread(target=lambda: children.append(process.spawn(SLEEP))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({child.pid for child in children}) == 4
    for child in children:
        process.kill_group(child)
        child.wait()


ESCAPING = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
"""


def test_marked_processes_are_killed_in_any_session() -> None:
    child = process.spawn([sys.executable, "-c", ESCAPING], stdout=subprocess.PIPE, env={**os.environ, "MARK": "mine"})
    bystander = process.spawn(SLEEP, env={**os.environ, "MARK": "another's"})
    assert child.stdout is not None
    orphan = int(child.stdout.readline())
    assert child.wait(300) == 0
    process.kill_marked("MARK", "mine")
    wait_until(lambda: gone(orphan), "the orphan is gone")
    assert bystander.poll() is None
    process.end(bystander, grace_seconds=0.0)
    child.stdout.close()


HIDING = """
import subprocess, sys
parent = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.stdout.close()"
parent += "; import time; time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True, env={})
print(child.pid, flush=True)
child.wait()
"""
ADOPTING = f"""
import json, os, signal, subprocess, sys
from jobs import process
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
process.adopt_orphans()
if sys.argv[1:]:  # as a runner, below this one
    child = process.spawn([sys.executable, "-c", {HIDING!r}])
    child.wait()
own, library_child = process.spawn(sleep), subprocess.Popen(sleep)
runner = process.spawn([sys.executable, "-c", os.environ["ADOPTING"], "runner"], stdout=subprocess.PIPE)
hidden = [int(runner.stdout.readline()), int(runner.stdout.readline())]
os.kill(runner.pid, signal.SIGKILL)
runner.wait()
process.kill_adopted()
print(json.dumps(dict(hidden=hidden, spared=[own.pid, library_child.pid])), flush=True)
sys.stdin.readline()
process.kill_group(own), library_child.kill(), library_child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="child subreapers are Linux's")
def test_orphans_with_an_environment_of_their_own_are_killed() -> None:
    """All processes that a killed runner started, in any session and environment, and no others."""
    environment = {**os.environ, "ADOPTING": ADOPTING}
    keeper = subprocess.Popen(
        [sys.executable, "-c", ADOPTING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    with keeper:
        assert keeper.stdout is not None
        found = json.loads(keeper.stdout.readline())
        assert len(set(found["hidden"])) == 2
        assert all(gone(pid) for pid in found["hidden"])
        assert not any(gone(pid) for pid in found["spared"])
        keeper.communicate(b"\n")
