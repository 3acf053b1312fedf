"""The field `sweep`: trainings with values from ranges, the best of which wins."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from jobs.errors import InvalidSpec
from jobs.specs.bounds import MOST_COLUMNS, Name
from jobs.specs.fields import LARGEST_INTEGER, Strict
from jobs.specs.training import TrainingSpec
from jobs.specs.training_options.training_metrics import PREFIX, Mode, is_better, mode_of

MOST_TRIALS = 10_000
"""The most trials of one sweep."""
MOST_TPE_TRIALS = 1000
"""The most trials of one sweep that TPE proposes; its time for one proposal grows with their number."""
_MAX_PARALLEL = 64
_LARGEST_TPE_INTEGER = 2**50  # optuna takes logarithms of shares of a range, which become 0 beyond
_LOSS = "loss"  # the only metric of a training itself that can choose its winner

SweptValue = str | int | float | bool
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e300, le=1e300)]


class RangeField(Strict):
    """The numbers from which a value is drawn."""

    low: Number
    """The smallest number."""
    high: Number
    """The largest number."""
    log: bool = False
    """Whether the logarithm of the number is drawn evenly, as is usual for learning rates."""
    integer: bool = False
    """Whether only whole numbers are drawn."""

    @model_validator(mode="after")
    def _is_range(self) -> RangeField:
        if self.low >= self.high:
            raise ValueError("low must be less than high")
        if self.log and self.low <= 0:
            raise ValueError("low must be more than 0 with log: true")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("low and high must be whole numbers with integer: true")
        return self

    def value_at(self, place: float) -> float | int:
        """The number at a place between 0 and 1, without 1."""
        low, high = (self.low, self.high + 1) if self.integer else (self.low, self.high)
        if self.log:
            found = math.exp(math.log(low) + place * (math.log(high) - math.log(low)))
        else:
            found = low + place * (high - low)
        found = min(max(found, self.low), self.high)  # rounding may leave the range by the last digit
        return math.floor(found) if self.integer else found


class ChoicesField(Strict):
    """The values of which one is drawn."""

    choices: Annotated[list[SweptValue], Field(min_length=1, max_length=1000)]
    """The values; each is equally likely."""

    def value_at(self, place: float) -> SweptValue:
        """The value at a place between 0 and 1, without 1."""
        return self.choices[int(place * len(self.choices))]

    def place_of(self, value: SweptValue) -> int:
        """The number of a value in `choices`; 1, 1.0 and true are different values."""
        return next(place for place, one in enumerate(self.choices) if type(one) is type(value) and one == value)


def _kind_of_values(given: object) -> str:
    """Which form the values of a parameter have; the brackets keep it out of the names of fields in messages."""
    has_choices = "choices" in given if isinstance(given, Mapping) else isinstance(given, ChoicesField)
    return "[choices]" if has_choices else "[range]"


SweptValues = Annotated[
    Annotated[RangeField, Tag("[range]")] | Annotated[ChoicesField, Tag("[choices]")], Discriminator(_kind_of_values)
]


class EarlyStoppingField(Strict):
    """When a trial ends early: asynchronous successive halving (ASHA, Li et al. 2018), as a stopping rule."""

    method: Literal["asha"]
    """The rule. A trial is compared with the others at `min_steps`, and at `reduction_factor` times as many steps, and
    so on. It goes on only if it is among the best of those that came so far, one in `reduction_factor`."""
    min_steps: Annotated[int, Field(ge=1, le=LARGEST_INTEGER)]
    """Number of steps after which a trial may end at the earliest."""
    reduction_factor: Annotated[int, Field(ge=2, le=100)] = 3
    """One in so many trials goes on."""

    def rung(self, number: int) -> int:
        """The steps of the comparison with a number, from 0."""
        return self.min_steps * int(self.reduction_factor**number)

    def num_best(self, num_trials: int) -> int:
        """How many of the trials that came to a comparison are good enough to go on; the first trial always is."""
        return max(1, num_trials // self.reduction_factor)

    def goes_on(self, value: float | None, others: Sequence[float | None], mode: Mode) -> bool:
        """Decide whether a trial goes on.

        Args:
            value: Its value of the sweep's metric at this comparison; None if it was not a finite number.
            others: The values of all trials that came before.
            mode: Whether the least or the largest value is the best.
        """
        num_best = self.num_best(len(others) + 1)
        known = [other for other in others if other is not None]
        if value is None:
            return len(known) < num_best
        return sum(is_better(other, value, mode) for other in known) < num_best

    def check_training(self, spec: TrainingSpec, metric: str) -> None:
        """Check that a trial records the metric before its end.

        Raises:
            InvalidSpec: It does not.
        """
        arguments, every_steps = spec.training_arguments, 1
        if metric != _LOSS:
            if not spec.evaluates_in_between:
                raise InvalidSpec(
                    f"sweep.early_stopping: '{metric}' is recorded only at the end of the training; set "
                    "arguments.eval_steps",
                    param="sweep.early_stopping",
                )
            every_steps = spec.eval_every_steps or 1
        first_step = math.ceil(self.min_steps / every_steps) * every_steps
        if arguments.max_steps is not None and first_step >= arguments.max_steps:
            raise InvalidSpec(
                f"sweep.early_stopping.min_steps: the first '{metric}' from step {self.min_steps} on is that of step "
                f"{first_step}, but the training has only {arguments.max_steps} steps",
                param="sweep.early_stopping.min_steps",
            )


def _most_parallel(num_trials: int) -> int:
    """The most trials that may be proposed by TPE before one of them has ended."""
    return max(1, num_trials // 2)


class SweepField(Strict):
    """What is drawn for each trial, and how the winner is chosen."""

    parameters: Annotated[dict[Name, SweptValues], Field(min_length=1, max_length=MOST_COLUMNS)]
    """Name -> `{low, high}`, also with `log: true` or `integer: true`; or `{choices: [...]}`."""
    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)]
    """Number of trials."""
    metric: Name
    """The metric that chooses the winner, such as `eval_loss`."""
    mode: Mode | None = None
    """Whether the least or the largest value of `metric` wins; by default derived from the metric's name."""
    search: Literal["random", "tpe"] = "random"
    """How values are chosen. `random`: drawn from the ranges. `tpe`: proposed from the trials that have ended, by the
    Tree-structured Parzen Estimator of optuna."""
    early_stopping: EarlyStoppingField | None = None
    """Ends trials early that are worse than others after as many steps."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_INTEGER)] = 0
    """Seed of the search. With `random`, each trial draws by this seed and its own number, so it always has the same
    values."""
    max_parallel: Annotated[int, Field(ge=1, le=1000)] = _MAX_PARALLEL
    """The most trials that are planned, wait for slots or run at once; with `tpe` at most half of them, since it learns
    from those that have ended."""

    @model_validator(mode="before")
    @classmethod
    def _parallel_by_default(cls, value: Any) -> Any:
        match value:
            case {"search": "tpe", "trials": int(trials), **others} if "max_parallel" not in others:
                return {**value, "max_parallel": min(_MAX_PARALLEL, _most_parallel(trials))}
        return value

    @model_validator(mode="after")
    def _known_mode(self) -> SweepField:
        if self.mode is None and mode_of(self.metric) is None:
            raise InvalidSpec(
                f"sweep.metric: the name '{self.metric}' does not say whether smaller or larger values are better; set "
                "sweep.mode to min or max",
                param="sweep.mode",
            )
        return self

    @model_validator(mode="after")
    def _fit_for_tpe(self) -> SweepField:
        if self.search != "tpe":
            return self
        if self.trials > MOST_TPE_TRIALS:
            raise InvalidSpec(f"sweep.trials: search: tpe takes at most {MOST_TPE_TRIALS} trials", param="sweep.trials")
        most_parallel = _most_parallel(self.trials)
        if self.max_parallel > most_parallel:
            raise InvalidSpec(
                f"sweep.max_parallel: is {self.max_parallel}, but search: tpe learns from trials that have ended; set "
                f"it to at most half of the trials, {most_parallel}",
                param="sweep.max_parallel",
            )
        for name, field in self.parameters.items():
            if isinstance(field, RangeField) and field.integer and max(-field.low, field.high) > _LARGEST_TPE_INTEGER:
                raise InvalidSpec(
                    f"sweep.parameters.{name}: search: tpe takes whole numbers up to 2^50; use a smaller range, or "
                    "integer: false",
                    param=f"sweep.parameters.{name}",
                )
        return self

    @property
    def is_adaptive(self) -> bool:
        """Whether the values of a trial depend on the trials before it, so that it must not be made too early."""
        return self.search == "tpe"

    @property
    def best_mode(self) -> Mode:
        """Whether the least or the largest value of `metric` wins."""
        return self.mode or mode_of(self.metric) or "min"

    @property
    def num_listed(self) -> int:
        """Number of trials."""
        return self.trials

    def listed(self, start: int = 0) -> Iterator[Mapping[str, SweptValue]]:
        """Yield the values of the trials from one of them on, as they are drawn at random."""
        yield from map(self.drawn, range(start, self.trials))

    def drawn(self, number: int) -> Mapping[str, SweptValue]:
        """The values of a trial, as they are drawn at random."""
        drawn = self.random_of(number)
        return {name: field.value_at(drawn.random()) for name, field in self.parameters.items()}

    def random_of(self, number: int) -> random.Random:
        """The source of random numbers for a trial: always the same for the same number."""
        return random.Random(f"{self.seed}/{number}")

    def check_trial(self, spec: object) -> None:
        """Check that a trial is a training that records the sweep's metric.

        Raises:
            InvalidSpec: It is not, or its evaluations have no such metric.
        """
        if not isinstance(spec, TrainingSpec):
            raise InvalidSpec("sweep: can only be used with kind: training", param="sweep")
        self._check_metric(spec)
        if self.early_stopping is not None:
            self.early_stopping.check_training(spec, self.metric)

    def _check_metric(self, spec: TrainingSpec) -> None:
        known = spec.eval_metrics
        if self.metric == _LOSS or (known is None and self.metric.startswith(PREFIX)):
            return
        names = (_LOSS, *(known or (f"{PREFIX}...",)))
        if self.metric not in names:
            raise InvalidSpec(
                f"sweep.metric: the training has no metric '{self.metric}'; it has {', '.join(names)}",
                param="sweep.metric",
            )
        if spec.trainer == "transformers" and (spec.data is None or spec.data.eval_input is None):
            raise InvalidSpec(
                f"sweep.metric: '{self.metric}' needs rows to evaluate; set data.eval or data.eval_split",
                param="sweep.metric",
            )
