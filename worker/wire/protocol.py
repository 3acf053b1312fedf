"""The messages between keeper and runner as JSON lines: orders to the runner's stdin, reports over a separate pipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from jobs import errors
from jobs.access.pins import Pins
from jobs.config.activities import Activity
from jobs.db.states import StopReason
from jobs.errors import InvalidSpec, MachineError, StokerError, UserError
from jobs.ledger.leasing.leases import WorkingLease
from jobs.specs.inference import JobSpec, parse_spec
from worker.stop import Outcome
from worker.wire.pipes import ProtocolError
from worker.wire.pulse import Beat

# -- orders: keeper -> runner --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """The order to work on this lease."""

    lease: WorkingLease


@dataclass(frozen=True, slots=True)
class StopLease:
    """The order to end the current lease, if there is one."""

    reason: StopReason


Order = Run | StopLease


# -- reports: runner -> keeper -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The runner has loaded its libraries and waits for orders."""

    device: str
    """Name of the runner's device, for people."""
    start_seconds: float
    """Seconds from the process's first line of Python until now."""


@dataclass(frozen=True, slots=True)
class Warm:
    """The keys of the models that the runner has loaded now."""

    model_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The lease's work ended in order."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Failed:
    """The lease's work ended in an error."""

    code: str
    message: str
    param: str | None
    is_users: bool
    """Whether the error is the user's, so that the job must fail, and not the machine's."""
    is_poisoned: bool
    """Whether the runner may be broken after this error (a device error, a bug) and must be replaced."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The database refused the runner's work, because the lease is over; the runner has dropped the work."""


_ACTIVITIES = frozenset(Activity)
_OUTCOMES = frozenset(Outcome)
Report = Ready | Beat | Warm | Done | Failed | Lost

# -- lines ---------------------------------------------------------------------------------------------------------


def order_line(order: Order) -> bytes:
    """The JSON line of an order, newline included."""
    match order:
        case Run(lease):
            return orjson.dumps({"run": lease}, default=_spec_document) + b"\n"
        case StopLease(reason):
            return orjson.dumps({"stop": reason}) + b"\n"


def parse_order(line: bytes) -> Order:
    """Read an order.

    Raises:
        ProtocolError: The line is not an order.
    """
    try:
        match _parse(line):
            case "run", dict(fields):
                spec, pins = parse_spec(fields.get("spec")), Pins.parse(fields.get("pins"))
                return Run(WorkingLease(**{**fields, "spec": spec, "pins": pins}))
            case "stop", str(reason):
                return StopLease(StopReason(reason))
    except (TypeError, ValueError, InvalidSpec) as error:
        raise ProtocolError(f"not an order: {line[:200]!r}") from error
    raise ProtocolError(f"not an order: {line[:200]!r}")


def _spec_document(spec: JobSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


def report_line(report: Report) -> bytes:
    """The JSON line of a report, newline included."""
    message: dict[str, Any]
    match report:
        case Ready(device, start_seconds):
            message = {"ready": {"device": device, "start_seconds": round(start_seconds, 3)}}
        case Beat(stage, activity, chunk, step):
            message = {"beat": {"stage": stage, "activity": activity, "chunk": chunk, "step": step}}
        case Warm(model_keys):
            message = {"warm": model_keys}
        case Done(outcome):
            message = {"done": {"outcome": outcome}}
        case Failed(code, text, param, is_users, is_poisoned):
            message = {
                "failed": {"code": code, "message": text, "param": param, "user": is_users, "poisoned": is_poisoned}
            }
        case Lost():
            message = {"lost": True}
    return orjson.dumps(message) + b"\n"


def parse_report(line: bytes) -> Report:
    """Read a report.

    Raises:
        ProtocolError: The line is not a report.
    """
    match _parse(line):
        case "ready", {"device": str(device), "start_seconds": float(start_seconds)}:
            return Ready(device, start_seconds)
        case "beat", {
            "stage": str(stage),
            "activity": str() | None as activity,
            "chunk": int() | None as chunk,
            "step": int() | None as step,
        } if activity is None or activity in _ACTIVITIES:
            return Beat(stage, None if activity is None else Activity(activity), chunk, step)
        case "warm", list(model_keys):
            return Warm(tuple(model_keys))
        case "done", {"outcome": str(outcome)} if outcome in _OUTCOMES:
            return Done(Outcome(outcome))
        case "failed", {
            "code": str(code),
            "message": str(text),
            "param": str() | None as param,
            "user": bool(user),
            **more,
        }:
            return Failed(code, text, param, user, bool(more.get("poisoned")))
        case "lost", True:
            return Lost()
    raise ProtocolError(f"not a report: {line[:200]!r}")


def _parse(line: bytes) -> tuple[str, Any]:
    try:
        message = orjson.loads(line)
        ((verb, body),) = message.items()
    except (orjson.JSONDecodeError, AttributeError, ValueError) as error:
        raise ProtocolError(f"not a message: {line[:200]!r}") from error
    return verb, body


# -- errors over the pipe ------------------------------------------------------------------------------------------


def failure_report(error: Exception) -> Failed:
    """The report of an error that ended a lease's work.

    An error that is not a `StokerError` means a bug or a broken device, and a plain `MachineError` means that the
    device is lost. Both count as failures of the machine, and the runner must be replaced.
    """
    if isinstance(error, StokerError):
        is_poisoned = type(error) is MachineError
        return Failed(error.code, error.message, error.param, isinstance(error, UserError), is_poisoned)
    text = " ".join(str(error).split()) or "no message"
    return Failed(MachineError.code, f"{type(error).__name__}: {text}", None, False, True)


def error_from(failure: Failed) -> StokerError:
    """The error of a report: an instance of the class with the report's code, if `jobs.errors` has one."""
    family = UserError if failure.is_users else MachineError
    return _classes(family).get(failure.code, family)(failure.message, param=failure.param)


def _classes(family: type[StokerError]) -> dict[str, type[StokerError]]:
    found = {family.code: family}
    for child in family.__subclasses__():
        if child.__module__ == errors.__name__:
            found |= _classes(child)
    return found
