"""The errors of this package, all derived from `StokerError`.

An error's `message` is a sentence for people, and its `code` is a stable name for programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    InvalidModel,
    InvalidOutput,
    InvalidSpec,
    NotFound,
    ServiceUnavailable,
    StokerError,
    UserError,
)
from scheduler.client.connection import ApiError

if TYPE_CHECKING:
    from .records import JobInfo

__all__ = [
    "ApiError", "Conflict", "Forbidden", "InvalidInput", "InvalidModel", "InvalidOutput", "InvalidSpec", "JobFailed",
    "NotFound", "ServiceUnavailable", "StokerError", "UserError",
]  # fmt: skip


class JobFailed(StokerError):
    """A job did not complete: it failed, was cancelled, or exceeded its time limit."""

    code = "job_failed"

    def __init__(self, job: JobInfo) -> None:
        """
        Args:
            job: The job in its terminal state. Its `error`, if it has one, has the reason.
        """
        reason = "" if job.error is None else f": {job.error.message}"
        super().__init__(f"job {job.id} ended as {job.state}{reason}")
        self.job = job
        if job.error is not None:
            self.code = job.error.code
