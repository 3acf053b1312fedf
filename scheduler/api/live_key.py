"""Answers that last: they end when the key that asked for them is revoked."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sqlmodel import Session

from jobs.db.tables import ApiKey
from jobs.errors import Unauthorized
from scheduler.api.context import Context

_LOOK_SECONDS = 1.0  # between two looks at the key


def is_valid(session: Session, key: ApiKey) -> bool:
    """Whether a key that was valid when its request came still is."""
    now = session.get(ApiKey, key.id, populate_existing=True)
    return now is not None and now.revoked_at is None


def while_valid(blocks: Iterator[bytes], context: Context, key: ApiKey) -> Iterator[bytes]:
    """The blocks of an answer, with a look at the key at most once in a second.

    Raises:
        Unauthorized: it was revoked; the connection breaks, so that nobody takes the part for the whole.
    """
    look_at = time.monotonic() + _LOOK_SECONDS
    for block in blocks:
        if time.monotonic() >= look_at:
            with context.database.read() as session:
                if not is_valid(session, key):
                    raise Unauthorized("the API key was revoked")
            look_at = time.monotonic() + _LOOK_SECONDS
        yield block
