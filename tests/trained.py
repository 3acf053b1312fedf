"""A training's process by itself, without a daemon: started on a plan, listened to, stopped or shot."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.stop import StopReason
from worker.training.plan import Plan
from worker.training.reports import Broken, Finished, Progress, Report, Saved, Stopped, parse_report, stop_line


@dataclass
class Attempt:
    """What one process said."""

    reports: list[Report] = field(default_factory=list)
    status: int | None = None

    @property
    def losses(self) -> dict[int, str]:
        """Each step's loss to the last bit."""
        return {step: value.hex() for step, name, value in self.points if name == "loss"}

    @property
    def points(self) -> list[tuple[int, str, float]]:
        """All metrics."""
        return [point for report in self.reports if isinstance(report, Progress) for point in report.points]

    def last(self, kind: type[Report]) -> Any:
        """The last report of a kind, or None."""
        return next((report for report in reversed(self.reports) if isinstance(report, kind)), None)

    @property
    def model(self) -> Path:
        """What it made."""
        finished = self.last(Finished)
        assert finished is not None, self.reports[-1:]
        return Path(finished.folder) / "model"

    @property
    def weights(self) -> str:
        """Digest of the weights that it made."""
        return hashlib.sha256((self.model / "model.safetensors").read_bytes()).hexdigest()


def attempt(
    folder: Path,
    spec: dict[str, Any],
    *,
    resume: Saved | None = None,
    until: Callable[[Report], str | None] = lambda _: None,
    **plan: Any,
) -> Attempt:
    """Run a process to its end.

    Args:
        folder: of this attempt's own.
        spec: of the training.
        resume: the checkpoint to go on from.
        until: asked at each report; `kill` shoots the process, a stop's reason stops it.
        plan: further fields of the plan.
    """
    folder.mkdir(parents=True)
    model = spec.get("model")
    made = Plan(
        job_id="job_1",
        spec=spec,
        folder=str(folder),
        device="cpu",
        num_threads=1,
        model=model if isinstance(model, str) else None,
        processor=model.get("processor") if isinstance(model, dict) else None,
        resume=None if resume is None else resume.folder,
        **plan,
    )
    made.write(folder / "plan.json")
    report_fd, child_fd = os.pipe()
    argv = [sys.executable, "-m", "worker.training.process", "--plan", str(folder / "plan.json")]
    environment = {**os.environ, "STOKER_INPUT_ROOTS": '["/"]', "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*argv, "--report-fd", str(child_fd)], stdin=subprocess.PIPE, pass_fds=(child_fd,), env=environment
    )
    os.close(child_fd)
    found = Attempt()
    assert process.stdin is not None
    for report in _reports(report_fd):
        found.reports.append(report)
        match until(report):
            case None:
                pass
            case "kill":
                process.send_signal(signal.SIGKILL)
                break
            case reason:
                process.stdin.write(stop_line(StopReason(reason)))
                process.stdin.flush()
    os.close(report_fd)
    found.status = process.wait(60)
    process.stdin.close()
    return found


def broken(found: Attempt) -> Broken:
    """Why it could not go on."""
    report = found.last(Broken)
    assert isinstance(report, Broken), found.reports[-1:]
    return report


def stopped(found: Attempt) -> Stopped:
    """Where it stopped."""
    report = found.last(Stopped)
    assert isinstance(report, Stopped), found.reports[-1:]
    return report


def write_rows(path: Path, records: list[dict[str, Any]]) -> str:
    """A JSONL file; its path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def _reports(fd: int) -> Iterator[Report]:
    partial = b""
    while chunk := os.read(fd, 65536):
        *lines, partial = (partial + chunk).split(b"\n")
        for line in lines:
            yield parse_report(line)
