"""The API's responses as frozen types. Fields that a newer API adds are ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from jobs.data.rows import RowError
from jobs.db.states import JobState

__all__ = ["Artifact", "Counts", "Event", "JobError", "JobInfo", "JobState", "LogLine", "Metric", "Result", "RowError"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Counts(_Record):
    """Number of a job's rows; for a training, of its steps."""

    total: int
    """Number of input rows or training steps; 0 until they are counted."""
    done: int
    """Rows with a recorded result, including row errors; or steps done."""
    failed: int
    """How many of `done` are row errors."""


class JobError(_Record):
    """Why a job ended without completing."""

    code: str
    message: str


class JobInfo(_Record):
    """The state of a job at one moment. Times are Unix seconds."""

    id: str
    kind: str
    """`inference` or `training`."""
    name: str | None
    state: JobState
    spec: dict[str, Any]
    """The submitted spec with defaults filled in."""
    priority: str
    counts: Counts
    created_at: float
    started_at: float | None
    ended_at: float | None
    error: JobError | None
    num_tokens: int
    """Tokens that the model saw so far, without padding."""
    waiting_reason: str | None = None
    """Why the job does not run yet, if it waits."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """For a training: the latest value of each metric."""

    @property
    def has_ended(self) -> bool:
        """Whether the state is final."""
        return self.state.is_terminal


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one input row: an output or an error, never both."""

    row_index: int
    """0-based position of the row in the whole input, counted over all files."""
    key: str | None
    """Value of the column that `input.key` names."""
    output: Any
    """The output of transformers' pipeline; for the task `embeddings` a list of numbers. None if there is an error."""
    error: RowError | None


class Artifact(_Record):
    """A file that a job produced."""

    name: str
    """Path of the file among the job's artifacts, such as `model/config.json`."""
    num_bytes: int = Field(alias="bytes")
    sha256: str
    created_at: float


class Metric(_Record):
    """One value of a job's metrics."""

    step: int
    """Training step; for inference, the number of rows done."""
    name: str
    value: float | None
    """None if the value was not finite."""


class Event(_Record):
    """One line of a job's history."""

    id: int
    at: float
    name: str
    data: dict[str, Any]


class LogLine(_Record):
    """One log line of a job's runner."""

    id: int
    at: float
    slot_id: str
    attempt: int
    line: str
