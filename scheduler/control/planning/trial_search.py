"""Proposes the values of a sweep's next trials by optuna's TPE, from the trials so far.

Nothing of optuna is stored: each time, a study in memory is made from what the database holds. A proposal counts only
once the transaction that creates its trial has recorded it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.db.states import LIVE_JOB_STATES, JobState
from jobs.errors import InvalidSpec
from jobs.ledger.groups.arrays import Trial
from jobs.specs.sweep_spec import ChoicesField, RangeField, SweepField, SweptValue

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_PACKAGE = "optuna"


def check_search(sweep: SweepField) -> None:
    """Check that the scheduler can search as a sweep asks.

    Raises:
        InvalidSpec: The package for it is not installed.
    """
    if sweep.is_adaptive and importlib.util.find_spec(_PACKAGE) is None:
        raise InvalidSpec(
            f"sweep.search: '{sweep.search}' needs the package {_PACKAGE}, which this scheduler lacks; install it "
            "where the scheduler runs (pip install 'stoker[sweeps]') and restart the scheduler",
            param="sweep.search",
        )


def proposals(
    sweep: SweepField, trials: Sequence[Trial], numbers: Iterable[int]
) -> Iterator[tuple[int, Mapping[str, SweptValue]]]:
    """Yield the number and the values of each of the next trials. Each proposal takes account of those before it.

    Args:
        sweep: What is searched.
        trials: The trials so far, also those of the sweeps that this one retries.
        numbers: The numbers of the next trials. One that is a number of a former trial gets the same values.

    Raises:
        InvalidSpec: See `check_search`.
    """
    check_search(sweep)
    import optuna

    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.enable_propagation()
    space = {name: _distribution(field) for name, field in sweep.parameters.items()}
    study = optuna.create_study(direction="minimize" if sweep.best_mode == "min" else "maximize")
    study.add_trials([_frozen(sweep, space, trial) for trial in trials])
    former = {trial.index: trial.values for trial in trials}
    for number in numbers:
        if number in former:
            study.add_trial(
                optuna.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=_params(sweep, former[number]), distributions=space
                )
            )
            yield number, former[number]
        else:
            yield number, _ask(sweep, space, study, number)


def _ask(sweep: SweepField, space: dict[str, BaseDistribution], study: Study, number: int) -> Mapping[str, SweptValue]:
    """The values that TPE proposes for the trial with a number, which runs in the study from then on."""
    from optuna.samplers import TPESampler

    # With `constant_liar`, a trial that runs counts as a bad one, so that trials at the same time differ.
    study.sampler = TPESampler(seed=sweep.random_of(number).getrandbits(32), constant_liar=True)
    asked = study.ask(space).params
    return {
        name: field.choices[asked[name]] if isinstance(field, ChoicesField) else asked[name]
        for name, field in sweep.parameters.items()
    }


def _frozen(sweep: SweepField, space: dict[str, BaseDistribution], trial: Trial) -> FrozenTrial:
    """A trial of the sweep as one of optuna."""
    from optuna.trial import TrialState, create_trial

    value, reports = None, {}
    if trial.state in LIVE_JOB_STATES:
        state = TrialState.RUNNING
    elif trial.state != JobState.COMPLETED or trial.value is None:
        state = TrialState.FAIL
    elif trial.pruned_step is not None:
        state, reports = TrialState.PRUNED, {trial.pruned_step: trial.value}
    else:
        state, value = TrialState.COMPLETE, trial.value
    params = _params(sweep, trial.values)
    return create_trial(state=state, value=value, params=params, distributions=space, intermediate_values=reports)


def _distribution(field: RangeField | ChoicesField) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(field, ChoicesField):  # by their places, since optuna takes 1 and true for the same
        return CategoricalDistribution(range(len(field.choices)))
    if field.integer:
        return IntDistribution(int(field.low), int(field.high), log=field.log)
    return FloatDistribution(field.low, field.high, log=field.log)


def _params(sweep: SweepField, values: Mapping[str, SweptValue]) -> dict[str, Any]:
    """The values of a trial as optuna knows them."""
    return {
        name: field.place_of(values[name]) if isinstance(field, ChoicesField) else values[name]
        for name, field in sweep.parameters.items()
    }
