"""Learning rate schedules: the `lr_scheduler_kwargs` that each accepts, with transformers' names and defaults.

The numbers of warmup steps and of all steps are not among them: the training itself sets those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ValidationError

from jobs.errors import InvalidSpec
from jobs.specs.settable import Expected, Settable
from jobs.specs.value_types import BoundedCountOrZero, NumberAboveZero, NumberFromZero

_PARAM = "arguments.lr_scheduler_kwargs"
Shape = Annotated[Literal["linear", "cosine", "1-sqrt"], Expected("one of linear, cosine, 1-sqrt")]


class Schedule(Settable):
    """A schedule without further arguments."""

    ONE_OF: ClassVar[tuple[str, ...]] = ()
    """Arguments of which exactly one must be given."""


class Cosine(Schedule):
    """A cosine, or with `cosine_with_restarts` several of them."""

    num_cycles: NumberFromZero = 0.5
    """Number of waves; half a wave falls from the learning rate to 0."""


class CosineWithRestarts(Schedule):
    """Several falling halves of a cosine, one after the other."""

    num_cycles: NumberFromZero = 1
    """Number of restarts."""


class CosineWithLeast(Cosine):
    """A cosine that ends above 0."""

    ONE_OF: ClassVar[tuple[str, ...]] = ("min_lr", "min_lr_rate")

    min_lr: NumberFromZero | None = None
    """Learning rate at the end."""
    min_lr_rate: NumberFromZero | None = None
    """The same as a share of the learning rate at the start."""


class Polynomial(Schedule):
    """A power of the steps that are left."""

    lr_end: NumberFromZero = 1e-7
    """Learning rate at the end, below that at the start."""
    power: NumberFromZero = 1.0
    """Exponent; 1 is a straight line."""


class InverseSqrt(Schedule):
    """The inverse square root of the step."""

    timescale: NumberAboveZero | None = None
    """Steps after which the rate begins to fall visibly; those of the warmup when absent."""


class WarmupStableDecay(Schedule):
    """Warmup, a constant rate, and a decay."""

    num_decay_steps: BoundedCountOrZero
    """Steps of the decay."""
    num_stable_steps: BoundedCountOrZero | None = None
    """Steps between; all that are left when absent."""
    warmup_type: Shape = "linear"
    """Shape of the warmup."""
    decay_type: Shape = "cosine"
    """Shape of the decay."""
    min_lr_ratio: NumberFromZero = 0
    """Learning rate at both ends, as a share of the constant one."""
    num_cycles: NumberFromZero = 0.5
    """Number of waves, where a shape is a cosine."""


SCHEDULES: Mapping[str, type[Schedule]] = {
    "linear": Schedule,
    "cosine": Cosine,
    "cosine_with_restarts": CosineWithRestarts,
    "cosine_with_min_lr": CosineWithLeast,
    "polynomial": Polynomial,
    "constant": Schedule,
    "constant_with_warmup": Schedule,
    "inverse_sqrt": InverseSqrt,
    "warmup_stable_decay": WarmupStableDecay,
}
"""Value of `lr_scheduler_type` -> the model of its `lr_scheduler_kwargs`."""


def check_schedule(name: str, given: Mapping[str, Any], *, learning_rate: float) -> None:
    """Check the arguments of a schedule.

    Args:
        name: A key of `SCHEDULES`.
        given: The spec's `lr_scheduler_kwargs`.
        learning_rate: The learning rate at the start.

    Raises:
        InvalidSpec: An argument is unknown, invalid or missing; the message names it.
    """
    model = SCHEDULES[name]
    try:
        schedule = model.model_validate(dict(given))
    except ValidationError as error:
        key, message = model.wrong_name(error, given)
        if key not in given:
            raise _refused("", f"the schedule '{name}' needs {key}") from error
        if message is None:
            message = f"the schedule '{name}' has no such argument; it has {', '.join(model.names()) or 'none'}"
        raise _refused(f".{key}", message) from error
    if model.ONE_OF and sum(given.get(key) is not None for key in model.ONE_OF) != 1:
        raise _refused("", f"the schedule '{name}' needs {' or '.join(model.ONE_OF)}, and not both")
    if isinstance(schedule, Polynomial) and learning_rate <= schedule.lr_end:
        raise _refused("", f"lr_end, {schedule.lr_end:g}, must be smaller than the learning rate, {learning_rate:g}")


def _refused(inner: str, reason: str) -> InvalidSpec:
    return InvalidSpec(f"{_PARAM}{inner}: {reason}", param=_PARAM)
