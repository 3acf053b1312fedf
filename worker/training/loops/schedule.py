"""What is due after a step. It depends on the step alone, so that a resumed attempt does what the first would have."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.errors import InvalidInput
from jobs.specs.inference import TrainingSpec
from jobs.specs.training_options.training_arguments import TrainingArguments


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
        arguments = spec.training_arguments
        log_by_strategy = {"no": None, "steps": arguments.logging_steps, "epoch": epoch_steps}
        return cls(
            total_steps=total_steps,
            epoch_steps=epoch_steps,
            log_every=log_by_strategy[arguments.logging_strategy],
            logs_first=arguments.logging_first_step,
            evaluate_every=epoch_steps if arguments.eval_strategy == "epoch" else spec.eval_every_steps,
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


def too_few_rows(num_rows: int, *, param: str) -> InvalidInput:
    """Make the error for rows of which `dataloader_drop_last` leaves none."""
    return InvalidInput(
        f"{param}: {num_rows} rows do not fill one batch, and arguments.dataloader_drop_last drops incomplete batches",
        param=param,
    )


def halved(arguments: TrainingArguments, num_halvings: int) -> tuple[int, int]:
    """Halve the micro-batch and increase the accumulation, so that the rows of a step stay the same.

    Args:
        arguments: The spec's `arguments`.
        num_halvings: Number of times to halve the micro-batch.

    Returns:
        The micro-batch, which is the largest divisor of the original one that is small enough, and the accumulation.
    """
    micro_batch, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    most = max(1, micro_batch >> num_halvings)
    smaller = next(size for size in range(most, 0, -1) if micro_batch % size == 0)
    return smaller, accumulation * (micro_batch // smaller)


def _divides(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
