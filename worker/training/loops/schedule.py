"""What is due after a step. It depends on the step alone, so that a resumed attempt does what the first would have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.specs.inference import TrainingSpec
from worker.training.loops.defaults import ACCUMULATION, MICRO_BATCH

LOGGING_STEPS = 10
"""Default of `arguments.logging_steps`."""


@dataclass(frozen=True, slots=True)
class Due:
    """What is done after one step."""

    log: bool
    evaluate: bool
    save: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """After which steps a training logs, evaluates and saves."""

    total_steps: int
    epoch_steps: int
    log_every: int | None
    """Interval in steps; None: log only after the last step."""
    logs_first: bool
    evaluate_every: int | None
    save_every: int
    has_eval: bool

    @classmethod
    def of(cls, spec: TrainingSpec, *, total_steps: int, epoch_steps: int, has_eval: bool) -> Schedule:
        """Make the schedule of a spec.

        Args:
            spec: The training's spec.
            total_steps: Number of steps of the training.
            epoch_steps: Number of steps of one pass over the data.
            has_eval: Whether there are rows to evaluate.
        """
        arguments = spec.arguments
        logging_steps = int(arguments.get("logging_steps", LOGGING_STEPS))
        eval_steps = int(arguments.get("eval_steps", logging_steps))  # as in transformers
        by_strategy = {"no": None, "steps": eval_steps, "epoch": epoch_steps}
        if "eval_strategy" not in arguments and ("eval_steps" in arguments or spec.checkpoint.best is not None):
            # transformers would ignore `eval_steps` and evaluate only at the end.
            by_strategy["no"] = int(arguments.get("eval_steps", spec.checkpoint.every_steps))
        log_by_strategy = {"no": None, "steps": logging_steps, "epoch": epoch_steps}
        return cls(
            total_steps=total_steps,
            epoch_steps=epoch_steps,
            log_every=log_by_strategy[arguments.get("logging_strategy", "steps")],
            logs_first=bool(arguments.get("logging_first_step", False)),
            evaluate_every=by_strategy[arguments.get("eval_strategy", "no")],
            save_every=spec.checkpoint.every_steps,
            has_eval=has_eval,
        )

    def due(self, step: int) -> Due:
        """Return what is due after a step. No checkpoint follows the last step, since the artifacts are saved then."""
        is_last = step >= self.total_steps
        return Due(
            log=is_last or _divides(self.log_every, step) or (self.logs_first and step == 1),
            evaluate=self.has_eval and (is_last or _divides(self.evaluate_every, step)),
            save=not is_last and _divides(self.save_every, step),
        )


def epoch_steps(num_rows: int, *, micro_batch: int, accumulation: int, drops_last: bool) -> int:
    """Return the number of steps of one pass over the data."""
    batches = num_rows // micro_batch if drops_last else math.ceil(num_rows / micro_batch)
    return math.ceil(batches / accumulation)


def halved(arguments: Mapping[str, Any], num_halvings: int) -> tuple[int, int]:
    """Halve the micro-batch and increase the accumulation, so that the rows of a step stay the same.

    Args:
        arguments: The spec's `arguments`.
        num_halvings: Number of times to halve the micro-batch.

    Returns:
        The micro-batch, which is the largest divisor of the original one that is small enough, and the accumulation.
    """
    micro_batch = int(arguments.get("per_device_train_batch_size", MICRO_BATCH))
    accumulation = int(arguments.get("gradient_accumulation_steps", ACCUMULATION))
    most = max(1, micro_batch >> num_halvings)
    smaller = next(size for size in range(most, 0, -1) if micro_batch % size == 0)
    return smaller, accumulation * (micro_batch // smaller)


def _divides(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
