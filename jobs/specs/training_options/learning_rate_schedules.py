"""Learning rate schedules: the `lr_scheduler_kwargs` that each accepts, with transformers' names and defaults.

The numbers of warmup steps and of all steps are not among them: the training itself sets those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ValidationError

from jobs.errors import InvalidSpec
from jobs.specs.training_options.settable import Expected, Settable
from jobs.specs.training_options.value_types import BoundedCountOrZero, NumberAboveZero, NumberFromZero

_PARAM = "arguments.lr_scheduler_kwargs"
Shape = Annotated[Literal["linear", "cosine", "1-sqrt"], Expected("one of linear, cosine, 1-sqrt")]


class Schedule(Settable):
    """A schedule without further arguments."""

    ONE_OF: ClassVar[tuple[str, ...]] = ()
    """Arguments of which exactly one must be given."""


class Cosine(Schedule):
    """The learning rate follows a cosine."""

    num_cycles: NumberFromZero = 0.5
    """Number of cosine waves; with 0.5, the learning rate falls to 0 once."""


class CosineWithRestarts(Schedule):
    """The learning rate falls along half a cosine several times."""

    num_cycles: NumberFromZero = 1
    """Number of restarts."""


class CosineWithMinLr(Cosine):
    """The learning rate follows a cosine that ends above 0."""

    ONE_OF: ClassVar[tuple[str, ...]] = ("min_lr", "min_lr_rate")

    min_lr: NumberFromZero | None = None
    """Learning rate at the end."""
    min_lr_rate: NumberFromZero | None = None
    """Learning rate at the end, as a share of the learning rate at the start."""


class Polynomial(Schedule):
    """The learning rate is a power of the number of remaining steps."""

    lr_end: NumberFromZero = 1e-7
    """Learning rate at the end; must be below the learning rate at the start."""
    power: NumberFromZero = 1.0
    """Exponent; with 1, the learning rate falls along a straight line."""


class InverseSqrt(Schedule):
    """The learning rate is the inverse square root of the step."""

    timescale: NumberAboveZero | None = None
    """Number of steps after which the rate begins to fall visibly; the number of warmup steps when absent."""


class WarmupStableDecay(Schedule):
    """The learning rate rises, stays constant, and then falls."""

    num_decay_steps: BoundedCountOrZero
    """Number of steps in which the rate falls."""
    num_stable_steps: BoundedCountOrZero | None = None
    """Number of steps with the constant rate; all remaining steps when absent."""
    warmup_type: Shape = "linear"
    """Curve along which the rate rises."""
    decay_type: Shape = "cosine"
    """Curve along which the rate falls."""
    min_lr_ratio: NumberFromZero = 0
    """Learning rate at the start and at the end, as a share of the constant rate."""
    num_cycles: NumberFromZero = 0.5
    """Number of waves of a cosine curve."""


SCHEDULES: Mapping[str, type[Schedule]] = {
    "linear": Schedule,
    "cosine": Cosine,
    "cosine_with_restarts": CosineWithRestarts,
    "cosine_with_min_lr": CosineWithMinLr,
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
        raise _refused("", f"the schedule '{name}' needs exactly one of {', '.join(model.ONE_OF)}")
    if isinstance(schedule, Polynomial) and learning_rate <= schedule.lr_end:
        raise _refused("", f"lr_end ({schedule.lr_end:g}) must be smaller than the learning rate ({learning_rate:g})")


def _refused(inner: str, reason: str) -> InvalidSpec:
    return InvalidSpec(f"{_PARAM}{inner}: {reason}", param=_PARAM)
