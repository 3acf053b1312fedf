"""Times that a forecast says, in words."""

from __future__ import annotations

from datetime import datetime

from scheduler.client.connection import Json


def forecast_text(moment: Json | None) -> str:
    """When something will happen, in local time; empty if nothing is known.

    Args:
        moment: The fields `at`, `earliest` and `latest` of a forecast.
    """
    if moment is None:
        return ""
    at, earliest, latest = moment["at"], moment["earliest"], moment["latest"]
    if earliest is None:
        return f"about {clock(at)} (too few jobs have run to say an interval)"
    if latest is None:
        return f"not before {clock(earliest)}"
    return f"between {clock(earliest)} and {clock(latest)}, most likely {clock(at)}"


def clock(at: float) -> str:
    """A time of day, with its date unless it is today."""
    local = datetime.fromtimestamp(at)
    is_today = local.date() == datetime.now().date()
    return local.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M")
