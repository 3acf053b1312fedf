"""The real training process under a test's own hand: started with a plan, followed, stopped, shot."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs import process
from tests import tiny
from worker.children import python_module, runner_environment
from worker.stop import StopReason
from worker.training.plan import Plan
from worker.training.reports import Broken, Finished, Progress, Report, Saved, Stopped, parse_report, stop_line

WORDS = {"animals": ("fox", "dog", "cat", "horse"), "cities": ("London", "Paris", "Rome", "Oslo")}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """A JSON lines file of rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled_texts(num_rows: int, *, seed: int = 3) -> list[dict[str, Any]]:
    """Texts of several lengths with one of two classes, which a word at the end tells."""
    chosen = random.Random(seed)
    rows = []
    for number in range(num_rows):
        label = chosen.choice(sorted(WORDS))
        words = " ".join(chosen.choices(tiny.SENTENCES[0].split(), k=chosen.randint(1, 12)))
        rows.append({"text": f"{number} {words} {chosen.choice(WORDS[label])}", "label": label})
    return rows


@dataclass
class Attempt:
    """What one process said before it ended."""

    folder: Path
    reports: list[Report] = field(default_factory=list)
    log: str = ""

    @property
    def points(self) -> dict[tuple[int, str], str]:
        """Each number by its step and name, to the last bit; those of the clock left out."""
        return {
            (step, name): float(value).hex()
            for report in self.of(Progress)
            for step, name, value in report.points
            if "per_second" not in name
        }

    @property
    def losses(self) -> dict[int, str]:
        """Each step's loss, to the last bit."""
        return {step: value for (step, name), value in self.points.items() if name == "loss"}

    @property
    def saved(self) -> Saved | None:
        """The newest checkpoint."""
        found = self.of(Saved)
        return found[-1] if found else None

    @property
    def finished(self) -> Finished:
        """Its last word, where all went well."""
        assert isinstance(self.reports[-1], Finished), (self.reports[-1:], self.log)
        return self.reports[-1]

    @property
    def stopped(self) -> Stopped:
        """Its last word, where it was stopped."""
        assert isinstance(self.reports[-1], Stopped), (self.reports[-1:], self.log)
        return self.reports[-1]

    @property
    def broken(self) -> Broken:
        """Its last word, where it could not go on."""
        assert isinstance(self.reports[-1], Broken), (self.reports[-1:], self.log)
        return self.reports[-1]

    @property
    def model(self) -> Path:
        """The folder of the model that it made."""
        return Path(self.finished.folder) / "model"

    @property
    def weights(self) -> str:
        """Digest of the weights that it made."""
        return hashlib.sha256((self.model / "model.safetensors").read_bytes()).hexdigest()

    def of(self, kind: type[Any]) -> list[Any]:
        """Its reports of one kind."""
        return [report for report in self.reports if isinstance(report, kind)]


def run_attempt(
    spec: Mapping[str, Any],
    folder: Path,
    *,
    resume: Saved | None = None,
    kill_when: Callable[[Report], bool] | None = None,
    stop_when: Callable[[Report], bool] | None = None,
    reason: StopReason = StopReason.SHUTDOWN,
    watch: Callable[[subprocess.Popen[bytes]], None] | None = None,
    **fields: Any,
) -> Attempt:
    """Run one training process to its end.

    Args:
        spec: of the job.
        folder: the attempt's own; made here.
        resume: the checkpoint that it goes on from.
        kill_when: told each report; says when to kill -9.
        stop_when: the same for a stop, which is asked once.
        reason: of the stop.
        watch: given the process once it is started.
        fields: further ones of the plan.
    """
    folder.mkdir(parents=True)
    plan = Plan(
        job_id="job_test",
        spec=dict(spec),
        folder=str(folder),
        device="cpu",
        num_threads=1,
        resume=None if resume is None else resume.folder,
        **({"model": spec["model"]} if isinstance(spec.get("model"), str) else {}),
        **fields,
    )
    plan.write(folder / "plan.json")
    report_fd, child_fd = os.pipe()
    environment = {"STOKER_DATA_DIR": str(folder.parent / "data"), "STOKER_INPUT_ROOTS": '["/"]'}
    with (folder / "log").open("wb") as log:
        child = process.spawn(
            python_module("worker.training.process", "--plan", f"{folder}/plan.json", "--report-fd", str(child_fd)),
            env=runner_environment({**os.environ, **environment}, num_threads=1),
            stdin=subprocess.PIPE,
            stderr=log,
            pass_fds=(child_fd,),
            on_parent_death=signal.SIGKILL,
        )
    os.close(child_fd)
    attempt = Attempt(folder)
    assert child.stdin is not None
    try:
        if watch is not None:
            watch(child)
        with os.fdopen(report_fd, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # it was killed in the middle of a line
                attempt.reports.append(parse_report(line))
                if kill_when is not None and kill_when(attempt.reports[-1]):
                    process.kill_group(child)
                    kill_when = None
                if stop_when is not None and stop_when(attempt.reports[-1]):
                    os.write(child.stdin.fileno(), stop_line(reason))
                    stop_when = None
    finally:
        process.kill_group(child)
        child.wait()
        child.stdin.close()
        attempt.log = (folder / "log").read_text(encoding="utf-8", errors="replace")
    return attempt


def at_step(step: int) -> Callable[[Report], bool]:
    """Says yes once a step is reported as done."""
    return lambda report: isinstance(report, Progress) and report.step >= step
