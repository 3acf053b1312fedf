"""Draw a job's progress while it runs: rows or steps, rates, remaining time, losses and failures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from jobs.messages import counted
from jobs.specs.array_spec import ARRAY
from jobs.specs.inference import TRAINING
from scheduler.cli.terminal import clean, joined, short_duration, short_number, show_message, stderr
from scheduler.client.connection import Json
from scheduler.client.http_client import TERMINAL_STATES

_WINDOW_SECONDS = 15.0
_LINE_SECONDS = 30.0
_DRAWS_PER_SECOND = 4
_CURVE_WIDTH = 12
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    num_done: int
    num_tokens: int


class Rates:
    """Rows and tokens per second over the last `_WINDOW_SECONDS`, computed from counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: Returns monotonic seconds.
        """
        self._clock = clock
        self._samples: deque[_Sample] = deque()
        self._is_first = True

    def add(self, num_done: int, num_tokens: int) -> None:
        """Record the current counts."""
        now = self._clock()
        if self._samples and num_done == self._samples[-1].num_done:
            return
        if self._is_first and len(self._samples) == 2:
            self._samples.popleft()  # the time before the first rows was spent on loading the model
            self._is_first = False
        self._samples.append(_Sample(now, num_done, num_tokens))
        while len(self._samples) > 2 and self._samples[1].at < now - _WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def rows_per_second(self) -> float | None:
        """Rows per second; None until it is known."""
        return self._rate(lambda sample: sample.num_done)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second; None until it is known."""
        return self._rate(lambda sample: sample.num_tokens)

    def seconds_left(self, num_left: int) -> float | None:
        """Seconds that the remaining rows will take; counts down between two samples. None until it is known."""
        rate = self.rows_per_second
        if not rate:
            return None
        return max(0.0, num_left / rate - (self._clock() - self._samples[-1].at))

    def _rate(self, count: Callable[[_Sample], int]) -> float | None:
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        return (count(last) - count(first)) / (last.at - first.at) if last.at > first.at else None


class _Facts(ProgressColumn):
    """Column of text after the bar."""

    def __init__(self, facts: Callable[[], str]) -> None:
        super().__init__()
        self._facts = facts

    def render(self, task: Task) -> RenderableType:  # noqa: ARG002, there is only one bar
        """Render the text."""
        return Text(self._facts(), no_wrap=True, overflow="ellipsis")


class JobProgress:
    """Shows one job's progress on stderr: a bar on a terminal, else a line every `_LINE_SECONDS`."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: Returns monotonic seconds.
        """
        self._clock = clock
        self._rates = Rates(clock)
        self._losses: list[float] = []
        self._job: Json | None = None
        self._shown_at: float | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            _Facts(self._describe),
            console=stderr,
            refresh_per_second=_DRAWS_PER_SECOND,
            transient=True,
            disable=not stderr.is_terminal,
        )
        self._bar = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, job: Json) -> None:
        """Show the current state of the job."""
        self._job = job
        counts = job["counts"]
        is_loading = job["kind"] == TRAINING and not counts["total"]
        if job["state"] in {"running", "finalizing"} and not is_loading:  # waiting must not lower the rate
            self._rates.add(counts["done"], job["num_tokens"])
        if "loss" in job["metrics"] and self._losses[-1:] != [job["metrics"]["loss"]]:
            self._losses.append(job["metrics"]["loss"])
        if self._progress.disable:
            self._show_sometimes(job)
            return
        self._progress.update(
            self._bar, description=f"{job['state']:<10}", total=counts["total"] or None, completed=counts["done"]
        )

    def _show_sometimes(self, job: Json) -> None:
        now = self._clock()
        if self._shown_at is None:
            self._shown_at = now
        elif now - self._shown_at >= _LINE_SECONDS and job["state"] not in TERMINAL_STATES:
            self._shown_at = now
            show_message(f"{job['id']} {job['state']}: {joined(self._describe().splitlines())}")

    def _describe(self) -> str:
        job = self._job
        if job is None:
            return ""
        counts, rates = job["counts"], self._rates
        if job["state"] in {"validating", "queued"}:
            size = counted(counts["total"], *noun_of(job)) if counts["total"] else ""
            if size and job["kind"] == TRAINING:  # it resumes after an earlier attempt
                size = f"{short_number(counts['done'])}/{short_number(counts['total'])} steps"
            return clean(joined([size, job.get("waiting_reason")]))
        if job["kind"] == TRAINING:
            return self._describe_training(job)
        left = rates.seconds_left(counts["total"] - counts["done"])
        rows_rate, tokens_rate = rates.rows_per_second, rates.tokens_per_second
        parts = [
            f"{short_number(counts['done'])}/{short_number(counts['total'])}",
            f"{short_number(counts['failed'])} failed" if counts["failed"] else None,
            f"{short_number(rows_rate)} rows/s" if rows_rate else None,
            f"{short_number(tokens_rate)} tok/s" if tokens_rate else None,
            f"eta {short_duration(left)}" if left is not None and job["state"] == "running" else None,
        ]
        return joined(parts)

    def _describe_training(self, job: Json) -> str:
        """Two lines of text, since one line of 80 columns is too short."""
        counts, metrics, rate = job["counts"], job["metrics"], self._rates.rows_per_second
        if not counts["total"]:
            return "loading the model and the rows"
        left = self._rates.seconds_left(counts["total"] - counts["done"])
        curve = sparkline(self._losses, width=_CURVE_WIDTH)
        pace = [
            f"{short_number(counts['done'])}/{short_number(counts['total'])} steps",
            f"{short_number(rate)} steps/s" if rate else None,
            f"{short_number(metrics['samples_per_second'])} samples/s" if "samples_per_second" in metrics else None,
        ]
        if counts["done"] == counts["total"]:  # a last evaluation may take minutes
            pace.append("evaluating and saving" if job["state"] == "running" else None)
        elif left is not None and job["state"] == "running":
            pace.append(f"eta {short_duration(left)}")
        learned = [
            f"loss {metrics['loss']:.4g} {curve}".rstrip() if "loss" in metrics else None,
            f"lr {metrics['learning_rate']:.3g}" if "learning_rate" in metrics else None,
            f"eval loss {metrics['eval_loss']:.4g}" if "eval_loss" in metrics else None,
        ]
        return "\n".join(line for line in (joined(pace), joined(learned)) if line)


def sparkline(values: Sequence[float], *, width: int) -> str:
    """A curve in one line of text: the means of `width` equal parts of the values, scaled to their range."""
    if len(values) < 2:
        return ""
    size = max(1.0, len(values) / width)
    parts = [values[int(at * size) : max(int(at * size) + 1, int((at + 1) * size))] for at in range(width)]
    means = [sum(part) / len(part) for part in parts if part]
    low, high = min(means), max(means)
    steps = len(_BARS) - 1
    return "".join(_BARS[round((mean - low) / (high - low) * steps) if high > low else 0] for mean in means)


def noun_of(job: Json) -> tuple[str, str]:
    """What a job's counts count, as one and as many."""
    return {TRAINING: ("step", "steps"), ARRAY: ("child", "children")}.get(job["kind"], ("row", "rows"))


def summary(job: Json) -> str:
    """One sentence about a job that has ended."""
    counts = job["counts"]
    noun = noun_of(job)
    began = job["started_at"] or job["created_at"]
    seconds = max(0.0, (job["ended_at"] or began) - began)
    rate = f" ({short_number(counts['done'] / seconds)} {noun[1]}/s)" if seconds > 0 and counts["done"] else ""
    done = counted(counts["done"], *noun)
    if counts["total"] and counts["done"] < counts["total"]:
        done = f"{counts['done']:,} of {counted(counts['total'], *noun)}"
    what = "that did not complete" if job["kind"] == ARRAY else "with a row error"
    failed = f", {counts['failed']:,} {what}" if counts["failed"] else ""
    return f"{job['id']} {job['state']}: {done} in {short_duration(seconds)}{rate}{failed}{_learned(job)}"


def _learned(job: Json) -> str:
    """The last loss of a training and the metrics of its last evaluation."""
    shown = {name: value for name, value in job["metrics"].items() if name == "loss" or name.startswith("eval_")}
    if job["kind"] != TRAINING or not shown:
        return ""
    return f"; {joined([f'{name} {value:.4g}' for name, value in sorted(shown.items())])}"
