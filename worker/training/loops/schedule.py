"""What is due after a step: pure, so that an attempt that goes on from any step does what the first one would have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.specs.inference import TrainingSpec
from worker.training.loops.defaults import ACCUMULATION, MICRO_BATCH

LOGGING_STEPS = 10
"""Unless the spec says otherwise."""


@dataclass(frozen=True, slots=True)
class Due:
    """What follows one step."""

    log: bool
    evaluate: bool
    save: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """A training's rhythm."""

    total_steps: int
    epoch_steps: int
    log_every: int | None
    """Steps; None: at the end alone."""
    logs_first: bool
    evaluate_every: int | None
    save_every: int
    has_eval: bool

    @classmethod
    def of(cls, spec: TrainingSpec, *, total_steps: int, epoch_steps: int, has_eval: bool) -> Schedule:
        """That of a spec.

        Args:
            total_steps: of the whole training.
            epoch_steps: of one pass over the data.
            has_eval: whether there are rows to judge by.
        """
        given = spec.arguments
        logging_steps = int(given.get("logging_steps", LOGGING_STEPS))
        eval_steps = int(given.get("eval_steps", logging_steps))  # as in transformers
        by_strategy = {"no": None, "steps": eval_steps, "epoch": epoch_steps}
        if "eval_strategy" not in given and ("eval_steps" in given or spec.checkpoint.best is not None):
            # transformers would evaluate at the end alone, whatever `eval_steps` says.
            by_strategy["no"] = int(given.get("eval_steps", spec.checkpoint.every_steps))
        log_by_strategy = {"no": None, "steps": logging_steps, "epoch": epoch_steps}
        return cls(
            total_steps=total_steps,
            epoch_steps=epoch_steps,
            log_every=log_by_strategy[given.get("logging_strategy", "steps")],
            logs_first=bool(given.get("logging_first_step", False)),
            evaluate_every=by_strategy[given.get("eval_strategy", "no")],
            save_every=spec.checkpoint.every_steps,
            has_eval=has_eval,
        )

    def due(self, step: int) -> Due:
        """What follows a step. After the last one nothing is saved: what came of the training is, at once."""
        is_last = step >= self.total_steps
        return Due(
            log=is_last or _divides(self.log_every, step) or (self.logs_first and step == 1),
            evaluate=self.has_eval and (is_last or _divides(self.evaluate_every, step)),
            save=not is_last and _divides(self.save_every, step),
        )


def epoch_steps(num_rows: int, *, micro_batch: int, accumulation: int, drops_last: bool) -> int:
    """Steps of one pass over the data."""
    batches = num_rows // micro_batch if drops_last else math.ceil(num_rows / micro_batch)
    return math.ceil(batches / accumulation)


def halved(arguments: Mapping[str, Any], num_halvings: int) -> tuple[int, int]:
    """A smaller micro-batch with as much more accumulation: a step keeps its rows, and the training its steps.

    Args:
        arguments: the spec's.
        num_halvings: how often the micro-batch was too large.

    Returns:
        The micro-batch, at most the `num_halvings`-th half and a divisor of it as it was, and the accumulation.
    """
    micro_batch = int(arguments.get("per_device_train_batch_size", MICRO_BATCH))
    accumulation = int(arguments.get("gradient_accumulation_steps", ACCUMULATION))
    most = max(1, micro_batch >> num_halvings)
    smaller = next(size for size in range(most, 0, -1) if micro_batch % size == 0)
    return smaller, accumulation * (micro_batch // smaller)


def _divides(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
