"""What a training process says to its runner, and what it is told: JSON lines over pipes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from jobs.config.activities import Activity
from jobs.db.states import StopReason
from worker.wire.protocol import ProtocolError


@dataclass(frozen=True, slots=True)
class Doing:
    """What the training does now; the same again is progress."""

    activity: Activity
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """The first step is about to be computed."""

    step: int
    """Steps that are done already, by an earlier attempt."""
    total_steps: int
    num_rows: int = 0
    """Rows to learn from, where they are counted."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Steps are done."""

    step: int
    points: tuple[tuple[int, str, float], ...] = ()
    """(step, name, value): `loss` of each step, `learning_rate`, `grad_norm`, `epoch`, `eval_...`."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint lies complete in a local folder; the runner copies it into the store and deletes the folder."""

    step: int
    folder: str
    metric: float | None = None
    """Of `checkpoint.best`, where it was evaluated at this very step."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """It ended at a step boundary because it was asked to; a checkpoint of this step was reported before."""

    step: int


@dataclass(frozen=True, slots=True)
class Finished:
    """All steps are done, and what came of them lies in a local folder: the artifacts, by their relative paths."""

    step: int
    folder: str
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broken:
    """It cannot go on."""

    code: str
    message: str
    param: str | None = None
    is_users: bool = False
    """Whether the job is at fault and must fail, rather than the machine."""


Report = Doing | Begun | Progress | Saved | Stopped | Finished | Broken
_KINDS: dict[str, type[Report]] = {
    "doing": Doing, "begun": Begun, "progress": Progress, "saved": Saved, "stopped": Stopped, "finished": Finished,
    "broken": Broken,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}
_NUMBERS = orjson.OPT_SERIALIZE_NUMPY


def report_line(report: Report) -> bytes:
    """The JSON line of a report, newline included. A number that is not finite becomes null."""
    return orjson.dumps({_NAMES[type(report)]: asdict(report)}, option=_NUMBERS) + b"\n"


def parse_report(line: bytes) -> Report:
    """Read a report.

    Raises:
        ProtocolError: the line is not one.
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
    """The line that asks the process to end at the next step boundary, with a checkpoint."""
    return orjson.dumps({"stop": reason}) + b"\n"


def parse_stop(line: bytes) -> StopReason:
    """Read it.

    Raises:
        ProtocolError: the line is not one.
    """
    try:
        return StopReason(orjson.loads(line)["stop"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"not an order to a training process: {line[:200]!r}") from error
