"""Run a training's process without a daemon: start it with a plan, read its reports, stop or kill it."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jobs.db.states import StopReason
from jobs.specs.training import TrainingSpec
from worker.training.attempt import process as training_process
from worker.training.plan import Plan
from worker.training.reports import Broken, Finished, Progress, RankReport, Saved, Stopped, parse_report, stop_line

# Torch and transformers are loaded once, in the parent of all processes; loading would take most of the time.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["worker.training.loops.trainer", "worker.training.loops.loop"])


@dataclass
class Attempt:
    """The reports and the exit status of one process."""

    reports: list[RankReport] = field(default_factory=list)
    status: int | None = None

    @property
    def losses(self) -> dict[int, str]:
        """The loss of each step, as an exact hexadecimal number."""
        return {step: value.hex() for step, name, value in self.points if name == "loss"}

    @property
    def points(self) -> list[tuple[int, str, float]]:
        """All metrics as (step, name, value)."""
        return [point for report in self.reports if isinstance(report, Progress) for point in report.points]

    def last(self, kind: type[RankReport]) -> Any:
        """The last report of a kind, or None."""
        return next((report for report in reversed(self.reports) if isinstance(report, kind)), None)

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        finished = self.last(Finished)
        assert finished is not None, self.reports[-1:]
        return Path(finished.folder) / "model"

    @property
    def weights(self) -> str:
        """Digest of the trained weights."""
        return hashlib.sha256((self.model / "model.safetensors").read_bytes()).hexdigest()


def attempt(
    folder: Path,
    spec: dict[str, Any],
    *,
    resume: Saved | None = None,
    until: Callable[[RankReport], str | None] = lambda _: None,
    **plan: Any,
) -> Attempt:
    """Run a process to its end.

    After each progress report the process waits until `until` has returned, so that a kill or stop happens at exactly
    that step, however busy the machine is.

    Args:
        folder: The attempt's own folder.
        spec: The training's spec.
        resume: The checkpoint from which to resume.
        until: Called with each report; `kill` kills the process, the value of a stop reason stops it.
        plan: Further fields of the plan; the default device is the CPU.
    """
    folder.mkdir(parents=True)
    model = spec.get("model")
    made = Plan(
        job_id="job_1",
        spec=TrainingSpec.model_validate(spec),
        folder=str(folder),
        num_threads=1,
        model=model if isinstance(model, str) else None,
        processor=model.get("processor") if isinstance(model, dict) else None,
        resume=None if resume is None else resume.folder,
        **{"device": "cpu", **plan},
    )
    made.write(folder / "plan.json")
    environment = {**os.environ, "STOKER_INPUT_ROOTS": '["/"]'}
    reports, reports_end = _PROCESSES.Pipe(duplex=False)
    orders_end, orders = _PROCESSES.Pipe(duplex=False)
    answers_end, answers = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(
        target=_train, args=(str(folder / "plan.json"), reports_end, orders_end, answers_end, environment), daemon=False
    )
    process.start()
    for end in (reports_end, orders_end, answers_end):
        end.close()
    found = Attempt()
    try:
        for report in _reports(reports.fileno()):
            found.reports.append(report)
            match until(report):
                case None:
                    pass
                case "kill":
                    process.kill()
                    break
                case reason:
                    os.write(orders.fileno(), stop_line(StopReason(reason)))
            if isinstance(report, Progress):
                with contextlib.suppress(BrokenPipeError):  # it has already ended
                    os.write(answers.fileno(), b".")
        process.join(300)
        found.status = process.exitcode
    finally:
        process.kill()
        for end in (reports, orders, answers):
            end.close()
    return found


def _train(
    plan: str, reports: Connection, orders: Connection, answers: Connection, environment: dict[str, str]
) -> None:
    """Main function of the process, as its runner starts it, except that its parent has loaded torch."""

    class InStep(training_process.Reporter):
        """Waits for a reply to each progress report."""

        def __call__(self, report: RankReport) -> None:
            super().__call__(report)
            if isinstance(report, Progress):
                os.read(answers.fileno(), 1)

    training_process.Reporter = InStep  # type: ignore[misc]
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # data loaders start their processes as usual
    os.dup2(orders.fileno(), 0)
    os._exit(training_process.main(["--plan", plan, "--report-fd", str(reports.fileno())]))


def kill_at(step: int) -> Callable[[RankReport], str | None]:
    """An `until` that kills the process once a step is reported."""
    return lambda report: "kill" if isinstance(report, Progress) and report.step >= step else None


KILL_STEPS = (3, 7, 14)
"""Steps before the first checkpoint, shortly after it, and later."""


def run_with_kills(folder: Path, spec: dict[str, Any], steps: Sequence[int] = KILL_STEPS, **plan: Any) -> list[Attempt]:
    """Run an attempt for each step, at which it is killed, and a last one; for `plan` see `attempt`."""
    resume: Saved | None = None
    attempts = []
    for step in steps:
        found = attempt(folder / f"to-{step}", spec, resume=resume, until=kill_at(step), **plan)
        assert found.status == -9
        attempts.append(found)
        resume = found.last(Saved) or resume
    attempts.append(attempt(folder / "last", spec, resume=resume, **plan))
    return attempts


def broken(found: Attempt) -> Broken:
    """The report of why the attempt failed."""
    report = found.last(Broken)
    assert isinstance(report, Broken), found.reports[-1:]
    return report


def stopped(found: Attempt) -> Stopped:
    """The report of where the attempt stopped."""
    report = found.last(Stopped)
    assert isinstance(report, Stopped), found.reports[-1:]
    return report


def _reports(fd: int) -> Iterator[RankReport]:
    partial = b""
    while chunk := os.read(fd, 65536):
        *lines, partial = (partial + chunk).split(b"\n")
        for line in lines:
            yield parse_report(line)
