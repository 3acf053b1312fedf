"""What a person reads while waiting: rates and times from counts, and figures that fit the line."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from scheduler.cli.progress import JobProgress, Rates, summary
from scheduler.cli.terminal import clean, short_bytes, short_duration, short_number


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def job(state: str, done: int, *, total: int = 1000, failed: int = 0, **fields: Any) -> dict[str, Any]:
    """A job as the API shows it."""
    counts = {"total": total, "done": done, "failed": failed}
    base = {
        "id": "job_1",
        "kind": "inference",
        "state": state,
        "counts": counts,
        "num_tokens": done * 10,
        "metrics": {},
    }
    base["waiting_reason"] = None
    return {**base, "created_at": 1.0, "started_at": 2.0, "ended_at": None, "error": None, **fields}


def test_rates_are_those_of_the_last_while() -> None:
    """A job that slows down must not look as fast as it was at its beginning."""
    clock = Clock()
    rates = Rates(clock)
    assert rates.rows_per_second is None
    for done in (0, 100, 200, 300):
        rates.add(done, done * 10)
        clock.now += 1.0
    assert rates.rows_per_second == pytest.approx(100.0)
    assert rates.tokens_per_second == pytest.approx(1000.0)
    for done in range(310, 510, 10):
        rates.add(done, done * 10)
        clock.now += 1.0
    assert rates.rows_per_second == pytest.approx(10.0)
    assert rates.seconds_left(100) == pytest.approx(9.0)  # one second has gone by since the last count


def test_time_spent_loading_the_model_is_no_slowness() -> None:
    """Otherwise the first estimate of a job's end would be wrong by hours."""
    clock = Clock()
    rates = Rates(clock)
    rates.add(0, 0)
    clock.now += 60.0
    rates.add(0, 0)
    rates.add(100, 0)
    clock.now += 1.0
    rates.add(200, 0)
    assert rates.rows_per_second == pytest.approx(100.0)


def test_off_a_terminal_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """A log of a nightly job must neither be silent for hours nor filled with control characters."""
    clock = Clock()
    with JobProgress(clock=clock) as progress:
        for second in range(100):
            progress.update(job("running", second * 10, failed=2))
            clock.now += 1.0
        progress.update(job("completed", 1000))
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert shown.out == ""
    assert len(lines) == 3
    assert lines[0] == "job_1 running: 300/1k, 2 failed, 10 rows/s, 100 tok/s, eta 1m10s"
    assert "\x1b" not in shown.err


def training(state: str, done: int, *, total: int = 120, **metrics: float) -> dict[str, Any]:
    """A training as the API shows it."""
    return job(state, done, total=total, kind="training", num_tokens=0, metrics=metrics)


def test_a_training_that_loads_is_not_slow(capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise its first step would promise an end hours away, and its start would show `0/0 steps`."""
    clock = Clock()
    with JobProgress(clock=clock) as progress:
        for second in range(94):
            if second < 40:
                progress.update(training("running", 0, total=0))
            else:
                metrics = {"loss": 4.0 - second / 50, "learning_rate": 5e-5, "samples_per_second": 16.0}
                progress.update(training("running", second - 40, **metrics))
            clock.now += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "job_1 running: loading the model and the rows"
    assert lines[1].startswith("job_1 running: 20/120 steps, 1 steps/s, 16 samples/s, eta 1m40s, loss 2.8 █")
    assert lines[1].endswith("▁, lr 5e-05")


def test_a_training_that_is_being_evaluated_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    """`eta 0.0s` stood still for minutes while the last evaluation ran."""
    clock = Clock()
    with JobProgress(clock=clock) as progress:
        for second in range(94):
            progress.update(training("running", min(90, second), total=90, loss=1.0))
            clock.now += 1.0
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "job_1 running: 90/90 steps, 1 steps/s, evaluating and saving, loss 1"


def test_a_training_that_waits_for_its_slots_again_has_steps(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with JobProgress(clock=clock) as progress:
        progress.update(training("queued", 40))
        clock.now += 60.0
        progress.update(training("queued", 40) | {"waiting_reason": "its runner died"})
    assert "queued: 40/120 steps, its runner died" in capsys.readouterr().err


def test_a_training_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remaining time must not be the part that a narrow terminal cuts off."""
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr("scheduler.cli.progress.stderr", console)
    clock = Clock()
    with JobProgress(clock=clock) as progress:
        for second in range(60):
            metrics = {"loss": 2.3051 - second / 50, "learning_rate": 9.18e-05}
            metrics |= {"samples_per_second": 13.49, "eval_loss": 1.0713}
            progress.update(training("running", 1000 + second, total=12_000, **metrics))
            clock.now += 1.0
    assert "lr 9.18e-05, eval loss 1.071" in drawn.getvalue()
    assert "1.06k/12k steps, 1 steps/s, 13 samples/s, eta 3h02m" in drawn.getvalue()
    assert "…" not in drawn.getvalue()


def test_the_summary_of_a_training_has_its_metrics() -> None:
    """A person who watched a night's training wants to read how good it is, without another command."""
    done = {**training("completed", 120, loss=1.2049, eval_accuracy=0.67206, grad_norm=3.0), "ended_at": 62.0}
    assert summary(done) == "job_1 completed: 120 steps in 1m00s (2 steps/s); eval_accuracy 0.6721, loss 1.205"


def test_the_summary_has_the_lost_work() -> None:
    """Row errors must be seen without reading the output."""
    done = job("completed", 1000, failed=3, ended_at=12.0)
    assert summary(done) == "job_1 completed: 1,000 rows in 10s (100 rows/s), 3 with a row error"
    cut = job("cancelled", 400, ended_at=12.0)
    assert summary(cut) == "job_1 cancelled: 400 of 1,000 rows in 10s (40 rows/s)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (7, "7"),
        (2.94, "2.9"),
        (99.6, "100"),
        (999, "999"),
        (1000, "1k"),
        (12_345, "12.3k"),
        (999_900, "1M"),
        (123_456_789, "123M"),
        (10_000_000, "10M"),
    ],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    """A wide number would push the line over the terminal's edge."""
    assert short_number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0s"), (9.94, "9.9s"), (59.4, "59s"), (59.7, "1m00s"), (3725, "1h02m"), (90_000, "1d01h")],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    """As above."""
    assert short_duration(seconds) == shown


def test_sizes_are_short() -> None:
    """As above."""
    assert [short_bytes(size) for size in (12, 2048, 5 * 2**30)] == ["12 B", "2.0 KiB", "5.0 GiB"]


def test_text_of_others_cannot_drive_the_terminal() -> None:
    """A log line or a key with escape codes could otherwise rewrite what the person reads."""
    assert "\x1b" not in clean("\x1b[2Jgone\r\x9bA\n")
    assert clean("a\tb") == "a\tb"
