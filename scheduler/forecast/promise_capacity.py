"""Which promises can be kept together: the work that is due by a time must fit into the slots until then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler.policy.promises import MARGIN

_STEP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Due:
    """Work that was promised."""

    at: float
    """When it must be done, Unix seconds."""
    slot_seconds: float
    """Upper bound of what is left of it."""


def is_feasible(dues: Iterable[Due], num_slots: int, now: float) -> bool:
    """Whether all promises can be kept on so many slots."""
    total = 0.0
    for due in sorted(dues, key=lambda due: due.at):
        total += MARGIN * due.slot_seconds
        if total > num_slots * (due.at - now):
            return False
    return True


def earliest_promise(
    dues: Sequence[Due], slot_seconds: float, *, num_slots: int, least_seconds: float, now: float
) -> float:
    """The earliest time by which more work can be promised without breaking a promise. Any later time can be too.

    Args:
        dues: What was promised before.
        slot_seconds: Upper bound of the new work.
        num_slots: Number of slots for all of it.
        least_seconds: Upper bound of the time that the new work takes on all slots that it can use.
        now: Unix seconds.
    """
    ordered = sorted(dues, key=lambda due: due.at)
    earliest = now + MARGIN * least_seconds
    total = 0.0
    for due in ordered:  # before a time at which there is no room for more, nothing can be promised
        total += due.slot_seconds
        if MARGIN * (total + slot_seconds) > num_slots * (due.at - now):
            earliest = max(earliest, due.at + _STEP_SECONDS)
    total = slot_seconds
    for due in ordered:
        if due.at > max(earliest, now + MARGIN * total / num_slots):
            break
        total += due.slot_seconds
    return max(earliest, now + MARGIN * total / num_slots)
