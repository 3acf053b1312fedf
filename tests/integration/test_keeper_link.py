"""A runner whose orders cannot be read ends, instead of living on without anybody who gives it work."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = "from worker.runner.keeper_link import OrderReader; OrderReader().next()"


def run(orders: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], input=orders, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )


def test_a_runner_without_a_keeper_ends() -> None:
    assert run(b"").returncode == 0


def test_a_runner_that_cannot_read_an_order_ends_with_the_reason() -> None:
    ended = run(b'{"kind": "of another release"}\n')
    assert ended.returncode == 1
    assert b"the orders of the keeper cannot be followed" in ended.stdout
    assert b"ProtocolError" in ended.stdout
