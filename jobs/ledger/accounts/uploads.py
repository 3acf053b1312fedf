"""Finds uploaded files by id, lists those that are still read, and withdraws those that nothing reads any more."""

from __future__ import annotations

from sqlalchemy import ColumnElement, select, update
from sqlmodel import Session, col

from jobs.access.paths import upload_id
from jobs.config.projects import OPERATOR, sees
from jobs.db.database import Database
from jobs.db.states import LIVE_BATCH_STATES, LIVE_JOB_STATES, BatchState
from jobs.db.tables import Batch, Cron, Job, StoredFile
from jobs.errors import NotFound

PURPOSES = ("input", "batch")
"""Purposes for which a user may upload a file: the input of a job, or of an OpenAI batch."""
WITHDRAWN_PURPOSE = "withdrawn"
"""Purpose of a file that is being deleted: nothing finds it any more, so that no job can begin to need it."""
_UPDATED_AT_ONCE = 1000  # ids in one statement


def find_upload(database: Database, file_id: str, *, project: str = OPERATOR) -> StoredFile:
    """Return the upload that `file:<id>` names.

    Args:
        project: The project that reads it.

    Raises:
        NotFound: There is no such upload that the project may see.
    """
    with database.read() as session:
        upload = session.get(StoredFile, file_id)
    if upload is None or upload.purpose == WITHDRAWN_PURPOSE or not sees(project, upload.project):
        raise NotFound(f"input.path: there is no uploaded file '{file_id}'", param="input.path")
    return upload


def withdraw_unused(database: Database, condition: ColumnElement[bool]) -> list[StoredFile]:
    """Withdraw the files under a condition that nothing reads, so that nothing can begin to read them.

    Returns:
        These files, also those that were withdrawn before. The caller deletes their objects, and then their rows.
    """
    with database.read() as session:
        if session.scalar(select(col(StoredFile.id)).where(condition).limit(1)) is None:
            return []  # without the write lock
    with database.write() as tx:
        in_use = uploads_in_use(tx)
        unused = [file for file in tx.scalars(select(StoredFile).where(condition)) if file.id not in in_use]
        for first in range(0, len(unused), _UPDATED_AT_ONCE):
            ids = [file.id for file in unused[first : first + _UPDATED_AT_ONCE]]
            tx.execute(update(StoredFile).where(col(StoredFile.id).in_(ids)).values(purpose=WITHDRAWN_PURPOSE))
    return unused


def uploads_in_use(session: Session) -> dict[str, str]:
    """Return file id -> reader (such as `job job_...`), for all files that live jobs, batches and cron entries read.

    Specs are read as stored JSON, since a spec from an older version may no longer be valid.
    """
    in_use: dict[str, str] = {}
    live = select(col(Job.id), col(Job.spec)).where(col(Job.state).in_(LIVE_JOB_STATES))
    for noun, query in (("job", live), ("cron entry", select(col(Cron.id), col(Cron.spec)))):
        for noun_id, spec in session.execute(query):
            data = spec.get("data") or {}
            rows = (spec.get("input", {}).get("path"), data.get("train"), data.get("eval"))
            for paths in (*rows, (spec.get("array") or {}).get("file")):
                for path in [paths] if isinstance(paths, str) else paths or []:
                    file_id = upload_id(path)
                    if file_id is not None:
                        in_use[file_id] = f"{noun} {noun_id}"
    _add_files_of_batches(session, in_use)
    return in_use


def _add_files_of_batches(session: Session, in_use: dict[str, str]) -> None:
    live = select(Batch).where(col(Batch.state).in_(LIVE_BATCH_STATES))
    for batch in session.scalars(live).all():
        reader = f"batch {batch.id}"
        in_use[batch.input_file_id] = reader
        # Finished jobs are included: their rows may still be read.
        jobs = select(col(Job.spec)).where(col(Job.batch_id) == batch.id)
        for spec in session.scalars(jobs).all():
            in_use[upload_id(spec["input"]["path"]) or ""] = reader
        carried = select(col(StoredFile.id)).where(col(StoredFile.key) == batch.carried_key)
        in_use.update(dict.fromkeys(session.scalars(carried).all(), reader))
        if batch.state == BatchState.VALIDATING and batch.retry_of is not None:
            retried = session.get(Batch, batch.retry_of)
            if retried is not None and retried.output_file_id is not None:
                in_use[retried.output_file_id] = reader
