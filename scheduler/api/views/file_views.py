"""Uploaded files and artifacts as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from jobs.db.tables import Artifact, StoredFile


class ArtifactView(BaseModel):
    """A file that a job produced."""

    name: str
    object: Literal["artifact"] = "artifact"
    bytes: int
    sha256: str
    created_at: float


def artifact_view(artifact: Artifact) -> ArtifactView:
    """An artifact as JSON."""
    return ArtifactView(
        name=artifact.name, bytes=artifact.num_bytes, sha256=artifact.sha256, created_at=artifact.created_at
    )


class FileView(BaseModel):
    """An uploaded file in OpenAI's format. Times are whole Unix seconds."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed"] = Field(
        default="processed",
        description="`uploaded` for the output file of a running batch, which can be read and still grows.",
    )
    expires_at: int | None


def file_view(file: StoredFile) -> FileView:
    """A file as JSON."""
    return FileView(
        id=file.id,
        bytes=file.num_bytes,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
        expires_at=None if file.expires_at is None else int(file.expires_at),
    )


class DeletedFile(BaseModel):
    """The response to a deletion, in OpenAI's format."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
