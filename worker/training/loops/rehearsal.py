"""Runs a module's training in this process, without a daemon, for the tests of its author."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.access.module_syntax import check_module
from jobs.config.settings import Settings
from jobs.specs.inference import TrainingSpec, parse_spec
from worker.device import pick_device
from worker.stop import Stop
from worker.training.collectives import SingleProcess
from worker.training.loops.loop import Loop
from worker.training.loops.loop_inputs import LoopInputs
from worker.training.loops.loss_values import LOSS
from worker.training.modules.load_module import load_module
from worker.training.modules.old_names import renamed_arguments
from worker.training.modules.user_module import Rows
from worker.training.plan import Plan
from worker.training.reports import Finished, Progress, RankReport


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The result of a rehearsal."""

    metrics: Mapping[str, list[float]]
    """Metric -> its values in the order of steps: `loss` of every step, `eval_...` of each evaluation."""
    folder: Path
    """The files that would become artifacts: `model/`, `summary.json`, and those that `Parts.finish` wrote."""

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return self.metrics[LOSS]


@renamed_arguments(judged_rows="eval_rows")
def rehearse(
    module: str | Path,
    *,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    rows: Rows | None = None,
    eval_rows: Rows | None = None,
) -> Rehearsal:
    """Train a module to the end, as a job would.

    Args:
        module: `recipes.<name>`, or the path of a Python file.
        folder: An existing folder for the files of the training; a temporary folder if absent.
        options: The spec's `options`.
        arguments: The spec's `arguments`; `{"max_steps": 3}` is often enough.
        rows: The module's `Setup.rows`; can be a list of mappings.
        eval_rows: The module's `Setup.eval_rows`.

    Raises:
        UserError: The error that a job would fail with.
    """
    folder = Path(tempfile.mkdtemp(prefix="stoker-rehearsal-")) if folder is None else folder
    is_recipe = str(module).startswith("recipes.")
    name = str(module) if is_recipe else str(Path(module).absolute())
    spec = parse_spec(
        {
            "kind": "training",
            "trainer": "torch",
            "module": name,
            "options": dict(options or {}),
            "arguments": dict(arguments or {}),
        }
    )
    assert isinstance(spec, TrainingSpec)
    plan = Plan(
        job_id="job_0", spec=spec, folder=str(folder), device=pick_device().type, num_threads=torch.get_num_threads()
    )
    reports: list[RankReport] = []
    rules = Settings() if is_recipe else Settings(code_roots=[Path(name).parent])
    if not is_recipe and Path(name).is_file():  # else what loads it says what is wrong
        check_module(Path(name), name)
    loaded = load_module(name, rules)
    Loop(plan, loaded, LoopInputs(rows, eval_rows), SingleProcess(), stop=Stop(), report=reports.append).run()
    metrics: dict[str, list[float]] = {}
    for report in reports:
        if isinstance(report, Progress):
            for _, metric, value in report.points:
                metrics.setdefault(metric, []).append(value)
    finished = reports[-1]
    assert isinstance(finished, Finished)
    return Rehearsal(metrics, Path(finished.folder))
