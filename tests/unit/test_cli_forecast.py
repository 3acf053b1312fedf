"""What `stoker status` says about a time: no more than is known."""

from __future__ import annotations

from datetime import datetime

import pytest

from scheduler.cli.forecast_text import clock, forecast_text

NOON = datetime(2020, 1, 2, 12).timestamp()


@pytest.mark.parametrize(
    ("at", "earliest", "latest", "text"),
    [
        (60, 0, 120, "between 2020-01-02 12:00 and 2020-01-02 12:02, most likely 2020-01-02 12:01"),
        (60, 0, None, "not before 2020-01-02 12:00"),
        (None, 0, None, "not before 2020-01-02 12:00"),
        (60, None, None, "about 2020-01-02 12:01 (too few jobs have run to say an interval)"),
    ],
)
def test_a_time_is_said_with_what_is_known(
    at: float | None, earliest: float | None, latest: float | None, text: str
) -> None:
    given = {"at": at, "earliest": earliest, "latest": latest}
    moment = {name: None if seconds is None else NOON + seconds for name, seconds in given.items()}
    assert forecast_text({**moment, "said_at": NOON}) == text
    assert forecast_text(None) == ""


def test_a_time_of_today_has_seconds_and_no_date() -> None:
    before = datetime.now()
    said = clock(before.timestamp())
    if before.date() == datetime.now().date():  # else midnight came between
        assert said == before.strftime("%H:%M:%S")
