"""The interval in which a time will be in four of five cases, by how far earlier forecasts were wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles

from jobs.ledger.timing.forecasts import OFFSET_SECONDS, ForecastTime
from scheduler.forecast.spans import Moment

LEAST_RATIOS = 20
"""Forecasts that must have been compared with what happened before an interval is said."""
_WIDEST = 10.0
"""An interval whose ends differ by more than this factor says nothing about its later end."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The 10th and 90th percentile of (actual + 60 s) / (forecast + 60 s)."""

    low: float
    high: float


def calibrate(ratios: Sequence[float]) -> Calibration | None:
    """The calibration by the latest ratios of one priority; None while they are too few."""
    if len(ratios) < LEAST_RATIOS:
        return None
    tenths = quantiles(ratios, n=10)
    return Calibration(tenths[0], tenths[-1])


def interval(moment: Moment, now: float, calibration: Calibration | None) -> ForecastTime:
    """What to say about a time.

    Args:
        now: When the forecast is made.
        calibration: Of the job's priority, if it is known.
    """
    if moment.is_bound:
        return ForecastTime(now, None, moment.at, None)
    if calibration is None:
        return ForecastTime(now, moment.at, None, None)
    said = max(0.0, moment.at - now) + OFFSET_SECONDS
    earliest, latest = (now + max(0.0, said * edge - OFFSET_SECONDS) for edge in (calibration.low, calibration.high))
    is_too_wide = calibration.high > _WIDEST * calibration.low
    return ForecastTime(now, moment.at, earliest, None if is_too_wide else latest)
