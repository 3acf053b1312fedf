"""What routes need: one context per app, passed as a dependency, and the types of common query parameters."""

from __future__ import annotations

import asyncio
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
from scheduler.api.throttle import Throttle

_UPLOADS_AT_ONCE = 32  # more wait for their turn


class Closing:
    """Tells open event and log streams that the server is shutting down."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self) -> None:
        """Remember the server's event loop; called on that loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """End the streams. May be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_seconds: float) -> bool:
        """Wait up to `timeout_seconds`; returns whether the server is shutting down."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class UploadTurns:
    """Limits concurrent uploads per API key. Only used on the server's event loop."""

    def __init__(self, most_of_one_key: int) -> None:
        """
        Args:
            most_of_one_key: Most concurrent uploads of one key, so that stuck clients of one key do not block others.
        """
        self._most_of_one_key = most_of_one_key
        self._of_key: dict[str, tuple[CapacityLimiter, int]] = {}
        self._threads = CapacityLimiter(_UPLOADS_AT_ONCE)

    @asynccontextmanager
    async def turn(self, key_id: str) -> AsyncIterator[CapacityLimiter]:
        """Wait until the key may upload. Yields the limiter of the threads that all uploads share."""
        limiter, num_users = self._of_key.get(key_id, (CapacityLimiter(self._most_of_one_key), 0))
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
    closing: Closing = field(default_factory=Closing)
    uploads: UploadTurns = field(init=False)
    """Limits of uploads. They may take hours, so their threads are separate from those of other requests."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "uploads", UploadTurns(self.settings.key_uploads))


def get_context(request: Request) -> Context:
    """The app's context."""
    context: Context = request.app.state.context
    return context


InContext = Annotated[Context, Depends(get_context)]

_ID_PATTERN = r"^[A-Za-z0-9_-]{1,100}$"
JobId = Annotated[str, Path(pattern=_ID_PATTERN, description="The job's id.")]
WebhookId = Annotated[str, Path(pattern=_ID_PATTERN, description="The webhook's id.")]
FileId = Annotated[str, Path(pattern=_ID_PATTERN, description="The file's id.")]
AfterId = Annotated[str | None, Query(pattern=_ID_PATTERN, description="`last_id` of the previous page.")]
PageSize = Annotated[int, Query(ge=1, le=100, description="Entries on a page.")]
AfterNumber = Annotated[int, Query(ge=0, le=2**63 - 1, description="Only entries with a larger id.")]
LongPageSize = Annotated[int, Query(ge=1, le=1000, description="Entries on a page.")]
