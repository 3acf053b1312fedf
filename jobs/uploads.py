"""Uploaded files as jobs see them: found by id, and which of them live jobs still read."""

from __future__ import annotations

from sqlalchemy import select
from sqlmodel import Session, col

from jobs.database import Database
from jobs.errors import NotFound
from jobs.paths import upload_id
from jobs.states import LIVE_JOB_STATES
from jobs.tables import Job, StoredFile


def find_upload(database: Database, file_id: str) -> StoredFile:
    """The upload that `file:<id>` names.

    Raises:
        NotFound: there is none of this id.
    """
    with database.read() as session:
        upload = session.get(StoredFile, file_id)
    if upload is None:
        raise NotFound(f"input.path: there is no uploaded file '{file_id}'", param="input.path")
    return upload


def uploads_in_use(session: Session) -> dict[str, str]:
    """The ids of the uploads that live jobs read, each with the id of one such job.

    Specs are read as they were stored, since an older version's need not be valid any more.
    """
    in_use: dict[str, str] = {}
    for job_id, spec in session.execute(select(col(Job.id), col(Job.spec)).where(col(Job.state).in_(LIVE_JOB_STATES))):
        paths = spec.get("input", {}).get("path", [])
        for path in [paths] if isinstance(paths, str) else paths:
            file_id = upload_id(path)
            if file_id is not None:
                in_use[file_id] = job_id
    return in_use
