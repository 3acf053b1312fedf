"""Open a source over files in a test's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.config.settings import Settings
from jobs.data.rows import Row
from jobs.data.sources import Source, open_source
from jobs.data.store import Store
from jobs.db.tables import StoredFile
from jobs.errors import NotFound
from jobs.specs.inference import InputSpec


def open_at(
    path: str | Path | list[str],
    columns: Mapping[str, str] | None = None,
    *,
    settings: Settings | None = None,
    **fields: Any,
) -> Source:
    """A source over `path` that reads the column `text`; `fields` go into the input's spec."""
    spec = InputSpec(path=path if isinstance(path, list) else str(path), **fields)
    return open_source(
        spec,
        columns or {"text": "text"},
        rules=settings or Settings(input_roots=[Path("/")]),
        store=Store("/nonexistent-store"),
        find_upload=_no_upload,
    )


def read_all(source: Source, chunk_rows: int = 1000) -> list[Row]:
    """Every row, chunk by chunk."""
    return [
        row for chunk in source.index(chunk_rows) for row in source.read(chunk.start_row, chunk.stop_row, chunk.locator)
    ]


def outcomes(rows: list[Row]) -> list[Any]:
    """Each row's text, or its error as (code, line)."""
    return [row.values["text"] if row.error is None else (row.error.code, row.error.line) for row in rows]


def _no_upload(file_id: str) -> StoredFile:
    raise NotFound(f"there is no file {file_id}")
