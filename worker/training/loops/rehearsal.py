"""A module tried out in this process, without a daemon: for its author's own tests."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.config.settings import Settings
from jobs.specs.inference import TrainingSpec, parse_spec
from worker.device import pick_device
from worker.stop import Stop
from worker.training.collectives import SingleProcess
from worker.training.loops.loop import Loop, LoopInputs
from worker.training.loops.loss_values import LOSS
from worker.training.modules.load_module import load_module
from worker.training.modules.old_names import renamed_arguments
from worker.training.modules.user_module import Rows
from worker.training.plan import Plan
from worker.training.reports import Finished, Progress, Report


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What came of it."""

    metrics: Mapping[str, list[float]]
    """Each metric's values by step: `loss` at every step, `eval_...` at each evaluation."""
    folder: Path
    """What would become artifacts: `model/`, `summary.json`, and what the module's `finish` wrote."""

    @property
    def losses(self) -> list[float]:
        """Of each step."""
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
    """Train as a job would, to the end.

    Args:
        module: `recipes.<name>`, or a Python file.
        folder: an existing one to write to; a temporary one when absent.
        options: as in a spec.
        arguments: as in a spec; `{"max_steps": 3}` is often enough.
        rows: what the module is to see as `Setup.rows`: a list of mappings will do.
        eval_rows: what it is to see as `Setup.eval_rows`.

    Raises:
        UserError: what a job would fail with.
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
    heard: list[Report] = []
    settings = Settings() if is_recipe else Settings(code_roots=[Path(name).parent])
    loaded = load_module(name, settings)
    Loop(plan, loaded, LoopInputs(rows, eval_rows), SingleProcess(), stop=Stop(), report=heard.append).run()
    metrics: dict[str, list[float]] = {}
    for report in heard:
        if isinstance(report, Progress):
            for _, metric, value in report.points:
                metrics.setdefault(metric, []).append(value)
    finished = heard[-1]
    assert isinstance(finished, Finished)
    return Rehearsal(metrics, Path(finished.folder))
