"""Which stage limits a job, from the seconds that its stages have worked."""

from __future__ import annotations

import pytest

from jobs.config.activities import Activity
from jobs.ledger.timing.stage_times import ADVICE, StageTimes


@pytest.mark.parametrize(
    ("times", "busy", "limit"),
    [
        (StageTimes(), None, None),
        (StageTimes(read=3.0, wait=5.0), None, None),
        (StageTimes(encode=9.0, wait=0.5, forward=9.5), 0.95, Activity.FORWARD),
        (StageTimes(read=2.0, encode=8.0, wait=5.0, forward=5.0, commit=1.0), 0.5, Activity.ENCODE),
        (StageTimes(read=9.0, encode=8.0, wait=5.0, forward=5.0), 0.5, Activity.READ),
        (StageTimes(read=1.0, decode=8.0, wait=5.0, forward=5.0), 0.5, Activity.DECODE),
        (StageTimes(read=1.0, commit=8.0, wait=5.0, forward=5.0), 0.5, Activity.COMMIT),
    ],
)
def test_the_stage_that_limits_a_job(times: StageTimes, busy: float | None, limit: Activity | None) -> None:
    assert times.device_busy == pytest.approx(busy)
    assert times.limited_by == limit
    assert limit is None or limit in ADVICE


def test_the_times_of_leases_add_up() -> None:
    one = StageTimes(
        read=1.0, encode=2.0, wait=3.0, forward=4.0, decode=5.0, commit=6.0, load=7.0, num_tokens=6,
        num_padded_tokens=8, num_rows=2, num_row_tokens=7,
    )  # fmt: skip
    both = one + one
    assert both.as_json() == {
        "read": 2.0, "encode": 4.0, "wait": 6.0, "forward": 8.0, "decode": 10.0, "commit": 12.0, "load": 14.0,
        "num_tokens": 12, "num_padded_tokens": 16, "num_rows": 4, "num_row_tokens": 14,
    }  # fmt: skip
    assert both.padding == pytest.approx(0.25)
    assert both.seconds == 14.0
    assert StageTimes(**both.as_json()) == both
