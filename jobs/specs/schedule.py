"""When a cron entry fires: a cron expression in a time zone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from jobs.errors import InvalidSpec

LONGEST_EXPRESSION = 200
"""The most characters of a cron expression."""
_NUM_FIELDS = 5


@dataclass(frozen=True, slots=True)
class Schedule:
    """The times that a cron expression describes, in a time zone. Made by `parse_schedule`."""

    expression: str
    zone: ZoneInfo

    def next_after(self, time: float) -> float:
        """The first time of the schedule after a time; both in Unix seconds."""
        return next(CronSim(self.expression, self._local(time))).timestamp()

    def latest(self, time: float) -> float:
        """The last time of the schedule up to and including a time; both in Unix seconds."""
        return next(CronSim(self.expression, self._local(time) + timedelta(seconds=1), reverse=True)).timestamp()

    def _local(self, time: float) -> datetime:
        return datetime.fromtimestamp(time, UTC).astimezone(self.zone)


def parse_schedule(expression: str, timezone: str) -> Schedule:
    """Parse a cron expression of five fields (minute, hour, day, month, weekday) and the name of a time zone.

    Where clocks change, it follows Debian's cron: a time that is skipped fires right after the gap, and a time that
    occurs twice fires once, unless the minute or the hour is `*`.

    Raises:
        InvalidSpec: One of them is not valid, or no time ever matches.
    """
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidSpec(
            f"timezone: there is no time zone '{timezone}'; use a name such as Europe/Zurich or UTC", param="timezone"
        ) from error
    try:
        if len(expression.split()) != _NUM_FIELDS:
            raise CronSimError(f"it must have {_NUM_FIELDS} fields: minute, hour, day, month, weekday")
        next(CronSim(expression, datetime.now(zone)))
    except CronSimError as error:
        why = re.sub(r"^Bad (.*)$", r"its \1 is not valid", str(error))
        raise InvalidSpec(f"schedule: '{expression}' is not a cron expression: {why}", param="schedule") from error
    except StopIteration as error:
        raise InvalidSpec(f"schedule: '{expression}' never fires", param="schedule") from error
    return Schedule(expression, zone)
