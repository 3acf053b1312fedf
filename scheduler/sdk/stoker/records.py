"""What the API answers, as frozen types. Fields that a newer API adds are left out."""

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
    """A job's rows; for a training, its steps."""

    total: int
    """Rows of the input, or steps; 0 until they are counted."""
    done: int
    """Rows with a recorded result, row errors included; or steps done."""
    failed: int
    """Rows of `done` whose result is a row error."""


class JobError(_Record):
    """Why a job ended without completing."""

    code: str
    message: str


class JobInfo(_Record):
    """A job as it was at one moment. Times are Unix seconds."""

    id: str
    kind: str
    """`inference` or `training`."""
    name: str | None
    state: JobState
    spec: dict[str, Any]
    """The spec as it was submitted, with the defaults."""
    priority: str
    counts: Counts
    created_at: float
    started_at: float | None
    ended_at: float | None
    error: JobError | None
    num_tokens: int
    """Tokens that the model saw so far, padding not counted."""
    waiting_reason: str | None = None
    """Why the job does not run yet, where it waits."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """The latest value of each metric of a training."""

    @property
    def has_ended(self) -> bool:
        """Whether the state does not change any more."""
        return self.state.is_terminal


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one input row: an output or an error, never both."""

    row_index: int
    """0-based position in the whole input, over all files."""
    key: str | None
    """The value of the column that `input.key` names."""
    output: Any
    """The output in the shape of transformers' pipeline; a list of numbers for `embeddings`. None with an error."""
    error: RowError | None


class Artifact(_Record):
    """A file that a job made."""

    name: str
    """Its path among the job's artifacts, such as `model/config.json`."""
    num_bytes: int = Field(alias="bytes")
    sha256: str
    created_at: float


class Metric(_Record):
    """One number of a job."""

    step: int
    """Where it was measured: a step of a training, or the rows done."""
    name: str
    value: float | None
    """None where it was not a finite number."""


class Event(_Record):
    """One line of a job's history."""

    id: int
    at: float
    name: str
    data: dict[str, Any]


class LogLine(_Record):
    """One line that a job's runner logged."""

    id: int
    at: float
    slot_id: str
    attempt: int
    line: str
