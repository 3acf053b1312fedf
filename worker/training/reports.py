"""Messages between a training process and its runner: JSON lines over pipes that carry nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from jobs.config.activities import Activity
from jobs.db.states import StopReason
from worker.wire.pipes import ProtocolError


@dataclass(frozen=True, slots=True)
class Doing:
    """The present activity of the training. A repeated report means that the activity makes progress."""

    activity: Activity
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """The first step of this attempt starts now."""

    step: int
    """Number of steps that earlier attempts completed."""
    total_steps: int
    num_rows: int = 0
    """Number of rows to train on; 0 if unknown."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Steps were completed, or an evaluation was made."""

    step: int
    points: tuple[tuple[int, str, float], ...] = ()
    """Metrics as (step, name, value): the `loss` of each step, `learning_rate`, `grad_norm`, `epoch`, `eval_...`."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A complete checkpoint is in a local folder. The runner copies it into the store and deletes the folder."""

    step: int
    folder: str
    metric: float | None = None
    """Value of the metric `checkpoint.best`, if it was evaluated at this step."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The process ended after this step because a stop was requested. Unless the stop is a cancel, a checkpoint of this
    step was reported before."""

    step: int


@dataclass(frozen=True, slots=True)
class Finished:
    """All steps are done, and the artifacts are in a local folder, by their relative paths."""

    step: int
    folder: str
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broken:
    """The training failed."""

    code: str
    message: str
    param: str | None = None
    is_users: bool = False
    """Whether the error is the job's, so that the job fails; otherwise it is the machine's, and is retried."""


RankReport = Doing | Begun | Progress | Saved | Stopped | Finished | Broken
_KINDS: dict[str, type[RankReport]] = {
    "doing": Doing, "begun": Begun, "progress": Progress, "saved": Saved, "stopped": Stopped, "finished": Finished,
    "broken": Broken,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}
_NUMBERS = orjson.OPT_SERIALIZE_NUMPY


def report_line(report: RankReport) -> bytes:
    """Return a report as a JSON line, including the newline. Numbers that are not finite become null."""
    return orjson.dumps({_NAMES[type(report)]: asdict(report)}, option=_NUMBERS) + b"\n"


def parse_report(line: bytes) -> RankReport:
    """Parse the JSON line of a report.

    Raises:
        ProtocolError: The line is not a report.
    """
    try:
        ((name, fields),) = orjson.loads(line).items()
        if name == "progress":
            points = tuple(
                (step, key, float("nan") if value is None else value) for step, key, value in fields["points"]
            )
            return Progress(fields["step"], points)
        if name == "doing":
            return Doing(Activity(fields["activity"]), fields["step"])
        return _KINDS[name](**fields)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"not a report of a training process: {line[:200]!r}") from error


def stop_line(reason: StopReason) -> bytes:
    """Return the line that asks the process to stop after the current step."""
    return orjson.dumps({"stop": reason}) + b"\n"


def parse_stop(line: bytes) -> StopReason:
    """Parse the line of a stop request.

    Raises:
        ProtocolError: The line is not a stop request.
    """
    try:
        return StopReason(orjson.loads(line)["stop"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"not a stop request to a training process: {line[:200]!r}") from error
