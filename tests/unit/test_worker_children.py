"""The commands and environments of child processes, and how their ends are worded."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys

import pytest

from jobs.child_modules import python_module
from jobs.ledger.slots import SlotInfo
from jobs.process import status_in_words
from worker.children import app_command, app_environment, runner_environment


def test_a_slots_processes_see_one_device_and_no_other() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0,1", "HOME": "/home/x"}
    assert app_environment(environ, device_uuid="MIG-7")["CUDA_VISIBLE_DEVICES"] == "MIG-7"
    assert app_environment(environ, device_uuid=None)["CUDA_VISIBLE_DEVICES"] == ""
    assert app_environment(environ, device_uuid=None)["HOME"] == "/home/x"


def test_a_runner_uses_no_more_threads_than_its_slot_has() -> None:
    environ = runner_environment({"OMP_NUM_THREADS": "64"}, num_threads=3)
    assert environ["OMP_NUM_THREADS"] == environ["RAYON_NUM_THREADS"] == "3"


def test_a_runners_threads_do_not_spin_unless_configured_to() -> None:
    assert runner_environment({}, num_threads=2)["OMP_WAIT_POLICY"] == "PASSIVE"
    assert runner_environment({}, num_threads=2)["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    assert runner_environment({"OMP_WAIT_POLICY": "ACTIVE"}, num_threads=2)["OMP_WAIT_POLICY"] == "ACTIVE"


_HOLD_AND_RELEASE = """
import psutil, torch
from worker.device import release_memory

def held():
    return psutil.Process().memory_info().rss

before = held()
tensors = [torch.ones(2**20) for _ in range(64)]
del tensors
kept = held() - before
release_memory(torch.device("cpu"))
print(kept, held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have other settings")
def test_a_runner_keeps_freed_memory_until_it_is_released() -> None:
    environ = runner_environment(os.environ, num_threads=1)
    command = [sys.executable, "-c", _HOLD_AND_RELEASE]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    kept, after_release = map(int, done.stdout.split())
    assert kept > 200 * 2**20
    assert after_release < 50 * 2**20


def test_children_find_our_package_wherever_they_start() -> None:
    environ = app_environment({"PYTHONPATH": "/elsewhere"}, device_uuid=None)
    done = subprocess.run(
        [*python_module("worker.keeper.app"), "--help"],
        cwd="/",
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert environ["PYTHONPATH"].endswith(":/elsewhere")


def test_the_command_of_a_worker_names_its_slot() -> None:
    slot = SlotInfo("here-gpu0", "here", "cuda", "GPU-1", "GPU", 1, 4)
    command = app_command(slot, "worker_1", runner_module="worker.runner.main_loop")
    assert command[:4] == [sys.executable, "-P", "-m", "worker.keeper.app"]
    assert command[4:] == [
        *("--slot", "here-gpu0", "--incarnation", "worker_1", "--device", "cuda"),
        *("--threads", "4", "--runner-module", "worker.runner.main_loop"),
    ]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exited with status 0"),
        (76, "exited with status 76"),
        (-signal.SIGSEGV, "was ended by SIGSEGV, a fault in native code"),
        (-signal.SIGKILL, "was ended by SIGKILL, sent by the kernel because memory ran out, or by a user"),
        (-signal.SIGTERM, "was ended by SIGTERM"),
        (-99, "was ended by signal 99"),
    ],
)
def test_an_exit_status_is_described_in_words(status: int, words: str) -> None:
    assert status_in_words(status) == words
