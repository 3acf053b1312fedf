"""Long responses end when the key that requested them is revoked."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sqlmodel import Session

from jobs.db.tables import ApiKey
from jobs.errors import Unauthorized
from scheduler.api.context import Context

_LOOK_SECONDS = 1.0  # between two checks of the key


def is_valid(session: Session, key: ApiKey) -> bool:
    """Whether a key that was valid at the start of the request is still valid."""
    now = session.get(ApiKey, key.id, populate_existing=True)
    return now is not None and now.revoked_at is None


def while_valid(blocks: Iterator[bytes], context: Context, key: ApiKey) -> Iterator[bytes]:
    """Yield the blocks of a response, checking the key at most once per second.

    Raises:
        Unauthorized: The key was revoked. The connection breaks, so that the response does not look complete.
    """
    look_at = time.monotonic() + _LOOK_SECONDS
    for block in blocks:
        if time.monotonic() >= look_at:
            with context.database.read() as session:
                if not is_valid(session, key):
                    raise Unauthorized("the API key was revoked")
            look_at = time.monotonic() + _LOOK_SECONDS
        yield block
