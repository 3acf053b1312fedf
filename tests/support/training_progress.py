"""Read a training's progress from a running stack's API, and wait for its steps and attempts."""

from __future__ import annotations

import contextlib
from typing import Any

from jobs.errors import ServiceUnavailable
from tests.conftest import wait_until
from tests.support.stack import Stack


def losses(running: Stack, job_id: str) -> list[tuple[int, str]]:
    """The loss of each step, as an exact hexadecimal number."""
    with running.client() as client:
        return [(one["step"], float(one["value"]).hex()) for one in client.metrics(job_id, name="loss")]


def attempts_of(running: Stack, job_id: str) -> list[dict[str, Any]]:
    with running.client() as client:
        return client.attempts(job_id)


def await_step(running: Stack, job_id: str, step: int) -> None:
    """Wait until a training has reached a step or has ended."""

    def is_there() -> bool:
        with contextlib.suppress(ServiceUnavailable):  # the API may be down
            job = client.job(job_id)
            return bool(job["counts"]["done"] >= step or job["ended_at"] is not None)
        return False

    with running.client() as client:
        wait_until(is_there, f"step {step}", 300.0)


def await_attempt(running: Stack, job_id: str, number: int) -> None:
    """Wait until an attempt has done at least three steps."""

    def is_there() -> bool:
        with contextlib.suppress(ServiceUnavailable):  # the API may be down
            last = client.attempts(job_id)[-1]
            return bool(last["number"] == number and last["last_step"] >= last["resumed_step"] + 3)
        return False

    with running.client() as client:
        wait_until(is_there, f"attempt {number}", 300.0)
