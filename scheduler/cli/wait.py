"""Wait for a job: show its progress, handle Ctrl-C, and turn its end into an exit code."""

from __future__ import annotations

import typer

from jobs.errors import StokerError, UserError
from scheduler.cli.interrupts import Interrupted
from scheduler.cli.progress import JobProgress, summary
from scheduler.cli.terminal import show_error, show_message
from scheduler.client.connection import ApiError, Json
from scheduler.client.http_client import StokerClient

_CANCEL_SECONDS = 20.0


def wait_for(client: StokerClient, job_id: str) -> Json:
    """Show a job's progress until it has ended. Returns the job."""
    with JobProgress() as progress:
        job = client.wait(job_id, progress.update)
    show_message(summary(job))
    return job


def wait_or_cancel(client: StokerClient, job_id: str) -> Json:
    """Wait like `wait_for`, but cancel the job at an interrupt.

    Raises:
        Interrupted: The wait was interrupted. Raised after the job was cancelled, or at once at a second interrupt.
    """
    try:
        return wait_for(client, job_id)
    except Interrupted:
        show_message(f"cancelling {job_id} ...")
        _cancel(client, job_id)
        raise


def _cancel(client: StokerClient, job_id: str) -> None:
    try:
        client.cancel(job_id)
        job = client.wait(job_id, timeout_seconds=_CANCEL_SECONDS)
    except ApiError as error:
        if error.status != 409:
            show_message(f"{job_id} could not be cancelled: {error.message}")
            return
        job = client.job(job_id)  # it had already ended
    except StokerError as error:
        show_message(f"{job_id} could not be cancelled: {error.message}")
        return
    except TimeoutError:
        show_message(f"{job_id} is still being cancelled; run `stoker status {job_id}` to see when it has ended")
        return
    show_message(summary(job))


def check_completed(job: Json, *, blame_user: bool) -> None:
    """End the command unless the job has completed.

    Args:
        job: The job in its terminal state.
        blame_user: Whether a user error, such as a missing column, is bad usage of this command (exit code 2). True
            for commands that submit the spec; commands that only watch a job report a failure (exit code 1).
    """
    if job["state"] == "completed":
        return
    error = job["error"]
    if error is not None:
        show_error(str(error["message"]))
    if blame_user and error is not None and error["code"] in _user_codes(UserError):
        raise typer.Exit(2)
    raise typer.Exit(1)


def _user_codes(tree: type[UserError]) -> set[str]:
    return {tree.code}.union(*(_user_codes(branch) for branch in tree.__subclasses__()))
