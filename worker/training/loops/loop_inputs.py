"""The rows that a spec's `data` gives to a module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.config.access_rules import AccessRules
from jobs.specs.inference import TrainingSpec
from worker.training.modules.user_module import Rows
from worker.training.plan import Plan


@dataclass(frozen=True, slots=True)
class LoopInputs:
    """The rows of a spec's `data`, if it has any."""

    rows: Rows | None = None
    eval_rows: Rows | None = None
    digest: str = ""
    """Digest of `rows`."""

    @classmethod
    def of(cls, spec: TrainingSpec, plan: Plan, rules: AccessRules) -> LoopInputs:
        """Read and prepare the rows, or find them already prepared."""
        if spec.data is None:
            return cls()
        from worker.training.tasks.data import as_they_are, rows_of  # loads pyarrow and datasets

        folder = Path(plan.folder) / "data" if plan.cache is None else Path(plan.cache)
        train, evaluation = rows_of(spec, rules)
        rows, digest = as_they_are(train, folder)
        eval_rows = None if evaluation is None else as_they_are(evaluation, folder)[0]
        return cls(rows, eval_rows, digest)
