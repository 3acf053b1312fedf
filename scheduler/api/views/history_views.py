"""What happened to a job as JSON: events, log lines, metrics and attempts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from jobs.db.states import AttemptEnd
from jobs.db.tables import Attempt, Event, LogLine


class EventView(BaseModel):
    """One line of a job's history."""

    id: int
    object: Literal["event"] = "event"
    job_id: str
    at: float
    name: str
    data: dict[str, Any]


def event_view(event: Event) -> EventView:
    """An event as JSON."""
    return EventView(id=event.id or 0, job_id=event.job_id, at=event.at, name=event.name, data=event.data)


class LogView(BaseModel):
    """One log line of a job's runner."""

    id: int
    object: Literal["log"] = "log"
    job_id: str
    slot_id: str
    lease_id: str
    attempt: int
    at: float
    line: str


def log_view(line: LogLine) -> LogView:
    """A log line as JSON."""
    return LogView(
        id=line.id or 0,
        job_id=line.job_id,
        slot_id=line.slot_id,
        lease_id=line.lease_id,
        attempt=line.attempt,
        at=line.at,
        line=line.line,
    )


class MetricView(BaseModel):
    """One value of a job's metrics."""

    step: int = Field(description="Training step; for inference, the number of rows done.")
    name: str
    value: float | None = Field(description="Null if the value was not finite.")


class MetricList(BaseModel):
    """A job's metrics."""

    object: Literal["list"] = "list"
    data: list[MetricView]


class AttemptView(BaseModel):
    """One attempt of a training. Times are Unix seconds."""

    number: int
    object: Literal["attempt"] = "attempt"
    slot_id: str = Field(description="Slot of the attempt's leader, which has rank 0.")
    slots: list[str] = Field(description="Ids of the attempt's slots, sorted by rank.")
    started_at: float
    ended_at: float | None
    resumed_step: int = Field(
        description="Step of the checkpoint that the attempt resumed from; 0: from the beginning."
    )
    last_step: int
    num_halvings: int = Field(description="How often the micro-batch was halved after running out of memory.")
    end: AttemptEnd | None = Field(description="Why the attempt ended; null while it runs.")
    reason: str | None = Field(description="Why the attempt ended, in words.")


def attempt_view(attempt: Attempt, slots: list[str]) -> AttemptView:
    """An attempt as JSON."""
    return AttemptView(slots=slots, **attempt.model_dump(include=set(AttemptView.model_fields) - {"object", "slots"}))
