"""Long responses end when the key that requested them is revoked."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from sqlalchemy import select
from sqlmodel import Session, col

from jobs.db.tables import ApiKey
from jobs.errors import Unauthorized
from scheduler.api.context import Context

_CHECK_SECONDS = 1.0  # between two checks of the key


def valid_keys(session: Session, key_ids: Collection[str]) -> frozenset[str]:
    """The ids of those keys that are not revoked."""
    valid = select(col(ApiKey.id)).where(col(ApiKey.id).in_(key_ids), col(ApiKey.revoked_at).is_(None))
    return frozenset(session.scalars(valid))


def while_valid(blocks: Iterator[bytes], context: Context, key: ApiKey) -> Iterator[bytes]:
    """Yield the blocks of a response, checking the key at most once per second.

    Raises:
        Unauthorized: The key was revoked. The connection breaks, so that the response does not look complete.
    """
    check_at = time.monotonic() + _CHECK_SECONDS
    for block in blocks:
        if time.monotonic() >= check_at:
            with context.database.read() as session:
                if not valid_keys(session, [key.id]):
                    raise Unauthorized("the API key was revoked")
            check_at = time.monotonic() + _CHECK_SECONDS
        yield block
