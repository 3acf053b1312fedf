"""How fast a job is on each kind of device: by what it has done itself, else by earlier jobs with the same workload."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from jobs.ledger.timing.speeds import Measured, Speed, SpeedKey

OWN_SHARE = 0.02
OWN_SECONDS = 60.0
"""From this share of a job on, or after this time of work, its own speed counts alone."""
_OTHER_DEVICE_DEVIATION = math.log(3.0)
"""The least deviation of the logarithm of a speed that was measured on another kind of device."""
_OWN_DEVIATION = 0.1
_UPPER = 1.2816  # standard deviations from the mean to the 90th percentile


class Basis(StrEnum):
    """What an estimate rests on."""

    OWN = "own"  # what the job itself has done
    EQUAL = "equal"  # jobs with the same workload on the same kind of device
    OTHER_DEVICE = "other_device"  # jobs with the same workload on another kind of device


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate of a speed."""

    per_second: float
    deviation: float
    """Standard deviation of its logarithm."""
    basis: Basis

    @property
    def slow(self) -> float:
        """The speed that nine of ten jobs exceed."""
        return self.per_second * math.exp(-_UPPER * self.deviation)


def estimate(
    keys: Sequence[SpeedKey], known: Mapping[SpeedKey, Speed], own: Sequence[Measured] = (), *, share_done: float = 0.0
) -> dict[str, Estimate]:
    """Estimate a job's speed on several kinds of device.

    Args:
        keys: The job's workload on each kind of device that its slots may have.
        known: The speeds of the job's model, the latest last.
        own: What the job has done itself.
        share_done: Which part of the job that is.

    Returns:
        Kind of device -> estimate; empty if nothing is known about any of them.
    """
    found: dict[str, Estimate] = {}
    missing: list[str] = []
    for key in keys:
        mine = next((one for one in own if one.key == key), None)
        if mine is not None and (share_done >= OWN_SHARE or mine.seconds >= OWN_SECONDS):
            found[key.device_name] = Estimate(mine.amount / mine.seconds, _OWN_DEVIATION, Basis.OWN)
        elif (speed := _find(key, known)) is not None:
            found[key.device_name] = Estimate(speed.per_second, speed.deviation, Basis.EQUAL)
        else:
            missing.append(key.device_name)
    others = list(found.values()) or _elsewhere(keys, known)
    if others:
        slowest = min(others, key=lambda one: one.per_second)
        deviation = max(slowest.deviation, _OTHER_DEVICE_DEVIATION)
        found |= {name: Estimate(slowest.per_second, deviation, Basis.OTHER_DEVICE) for name in missing}
    return found


def _find(key: SpeedKey, known: Mapping[SpeedKey, Speed]) -> Speed | None:
    """The speed of a key. The commit of a hub id is unknown until a job runs; the latest one counts meanwhile."""
    if key in known or key.workload.revision:
        return known.get(key)
    return next((speed for one, speed in reversed(list(known.items())) if _without_revision(one) == key), None)


def _elsewhere(keys: Sequence[SpeedKey], known: Mapping[SpeedKey, Speed]) -> list[Estimate]:
    """The speeds of the same workload on kinds of device that no slot has now."""
    wanted = {replace(key, device_name="") for key in keys}
    equal = [
        speed
        for one, speed in known.items()
        if wanted & {replace(one, device_name=""), replace(_without_revision(one), device_name="")}
    ]
    return [Estimate(speed.per_second, speed.deviation, Basis.OTHER_DEVICE) for speed in equal]


def _without_revision(key: SpeedKey) -> SpeedKey:
    return replace(key, workload=replace(key.workload, revision=""))
