"""What routes need: one context per app, passed as a dependency, and the types of common query parameters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Path, Query, Request

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.queue import Doorbell
from scheduler.admin.key_cache import KeyCache
from scheduler.api.shared_reads import SharedReads
from scheduler.api.throttle import Throttle

_UPLOADS_AT_ONCE = 32  # more wait for their turn


class UploadTurns:
    """Limits concurrent uploads per API key. Only used on the server's event loop."""

    def __init__(self, max_per_key: int) -> None:
        """
        Args:
            max_per_key: Most concurrent uploads of one key, so that stuck clients of one key do not block others.
        """
        self._max_per_key = max_per_key
        self._of_key: dict[str, tuple[CapacityLimiter, int]] = {}
        self._threads = CapacityLimiter(_UPLOADS_AT_ONCE)

    @asynccontextmanager
    async def turn(self, key_id: str) -> AsyncIterator[CapacityLimiter]:
        """Wait until the key may upload. Yields the limiter of the threads that all uploads share."""
        limiter, num_users = self._of_key.get(key_id, (CapacityLimiter(self._max_per_key), 0))
        self._of_key[key_id] = limiter, num_users + 1
        try:
            async with limiter:
                yield self._threads
        finally:
            limiter, num_users = self._of_key.pop(key_id)
            if num_users > 1:
                self._of_key[key_id] = limiter, num_users - 1


@dataclass(frozen=True, slots=True)
class Context:
    """The shared objects of all routes."""

    settings: Settings
    database: Database
    store: Store
    doorbell: Doorbell
    throttle: Throttle
    looks: SharedReads = field(default_factory=SharedReads)
    """The looks at followed jobs, which their streams share."""
    keys: KeyCache = field(init=False)
    uploads: UploadTurns = field(init=False)
    """Limits of uploads. They may take hours, so their threads are separate from those of other requests."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", KeyCache(self.database))
        object.__setattr__(self, "uploads", UploadTurns(self.settings.key_uploads))


def get_context(request: Request) -> Context:
    """The app's context."""
    context: Context = request.app.state.context
    return context


InContext = Annotated[Context, Depends(get_context)]

ID_PATTERN = r"^[A-Za-z0-9_-]{1,100}$"
"""The form of ids."""
JobId = Annotated[str, Path(pattern=ID_PATTERN, description="Id of the job.")]
WebhookId = Annotated[str, Path(pattern=ID_PATTERN, description="Id of the webhook.")]
CronId = Annotated[str, Path(pattern=ID_PATTERN, description="Id of the cron entry.")]
FileId = Annotated[str, Path(pattern=ID_PATTERN, description="Id of the file.")]
AfterId = Annotated[
    str | None, Query(pattern=ID_PATTERN, description="`last_id` of the previous page; the page starts after it.")
]
PageSize = Annotated[int, Query(ge=1, le=100, description="Maximum number of entries on the page.")]
AfterNumber = Annotated[int, Query(ge=0, le=2**63 - 1, description="Only entries with a larger id.")]
LongPageSize = Annotated[int, Query(ge=1, le=1000, description="Maximum number of entries on the page.")]
