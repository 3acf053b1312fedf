"""Keys of the artifact store. All of them are built here, so that no two kinds of object share a name."""

from __future__ import annotations

_LONGEST_NAME_BYTES = 255


def upload_key(file_id: str) -> str:
    """Key of an uploaded file."""
    return f"uploads/{file_id}"


def job_prefix(job_id: str) -> str:
    """Key prefix of everything that a job wrote."""
    return f"jobs/{job_id}/"


def batch_prefix(batch_id: str) -> str:
    """Key prefix of the files into which a batch's input is split."""
    return f"batches/{batch_id}/"


def part_key(job_id: str, start_row: int, lease_id: str, suffix: str) -> str:
    """Key of one chunk's results. It holds the lease id: a lost owner cannot overwrite the live owner's part."""
    return f"{job_prefix(job_id)}parts/{start_row:012d}-{lease_id}{suffix}"


def array_values_key(job_id: str) -> str:
    """Key of the values of an array's children, if they were read from a file."""
    return f"{job_prefix(job_id)}array.jsonl"


def artifact_key(job_id: str, name: str) -> str:
    """Key of a job's artifact."""
    return f"{job_prefix(job_id)}artifacts/{name}"


def checkpoint_prefix(job_id: str, step: int, lease_id: str) -> str:
    """Key prefix of a checkpoint's files. It holds the lease id, so that a lost owner cannot overwrite any."""
    return f"{job_prefix(job_id)}checkpoints/{step:012d}-{lease_id}/"


def lease_artifact_prefix(job_id: str, lease_id: str) -> str:
    """Key prefix of artifacts that a lease's holder wrote and that the job has not adopted yet."""
    return f"{job_prefix(job_id)}artifacts-{lease_id}/"


def is_name(key: str) -> bool:
    """Whether a key is valid: printable names, none of them `.` or `..`, separated by `/`."""
    return (
        key.isprintable()
        and "\\" not in key
        and all(
            name not in {"", ".", ".."} and len(name.encode(errors="replace")) <= _LONGEST_NAME_BYTES
            for name in key.split("/")
        )
    )
