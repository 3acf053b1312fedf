"""Fetch a job's artifacts into a folder, and check each file against the digest that the API reported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.errors import InvalidOutput, ServiceUnavailable
from scheduler.client.connection import Json
from scheduler.client.http_client import StokerClient


def fetch_artifacts(
    client: StokerClient, job_id: str, artifacts: Sequence[Json], folder: Path
) -> Iterator[tuple[Json, Path]]:
    """Write artifacts into a folder, which is created if missing. Each step of the iteration writes one file.

    Args:
        client: Client of the API.
        job_id: Id of the job.
        artifacts: Artifacts to fetch, as the API lists them.
        folder: Target folder.

    Yields:
        Each artifact and its file, once the file is complete.

    Raises:
        InvalidOutput: A file cannot be written, or would be written outside the folder.
        ServiceUnavailable: A file was damaged during the download.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidOutput(f"cannot create the folder '{folder}': {error.strerror}", param="output") from error
    inside = folder.resolve()
    for artifact in artifacts:
        target = (inside / artifact["name"]).resolve()
        if not target.is_relative_to(inside) or target == inside:
            raise InvalidOutput(
                f"the artifact '{artifact['name']}' would be written outside '{folder}'", param="output"
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_artifact(job_id, artifact["name"], target)
        except OSError as error:
            raise InvalidOutput(f"cannot write '{target}': {error.strerror}", param="output") from error
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != artifact["sha256"]:
            target.unlink()
            raise ServiceUnavailable(
                f"the artifact '{artifact['name']}' was damaged during the download; fetch it again"
            )
        yield artifact, target
