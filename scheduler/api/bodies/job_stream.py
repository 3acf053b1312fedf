"""Server-sent events that follow a job in the database until it has ended; clients can resume a broken stream."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from starlette.responses import StreamingResponse

from jobs.db.tables import ApiKey
from jobs.errors import StokerError
from scheduler.api.bodies.job_looks import Ask, EntryKind, look
from scheduler.api.bodies.tail import Tail
from scheduler.api.context import Context
from scheduler.api.views.lists import ShownSpec

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5
_PAUSE_SHARE = (
    0.05  # of the time since the start: the end of a job of one second is seen within 50 ms, of a long one within 0.5 s
)
_KEEP_ALIVE_SECONDS = 5.0
_SETTLE_SECONDS = 5.0
_LAST_LINES_SECONDS = 1.0


class Follower:
    """Follows one job for one client. All followers of a job that wait at the same time share the next look at it."""

    def __init__(
        self, context: Context, key: ApiKey, job_id: str, kind: EntryKind, *, after: int, with_progress: bool
    ) -> None:
        """
        Args:
            context: The app's context.
            key: The client's API key; the stream ends when it is revoked.
            job_id: The job to follow.
            kind: The entries to send.
            after: Only entries with a larger id are sent.
            with_progress: Send the job as a `progress` event at once and whenever its state or counts have changed.
        """
        self._context = context
        self._key = key
        self._job_id = job_id
        self._kind = kind
        self._tail = Tail(after=after, settle_seconds=0.0 if context.database.is_sqlite else _SETTLE_SECONDS)
        self._with_progress = with_progress

    def response(self) -> StreamingResponse:
        """Return the stream as a response."""
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(self._messages(), media_type="text/event-stream", headers=headers)

    async def _messages(self) -> AsyncIterator[bytes]:
        started = sent_at = time.monotonic()
        pause = 0.0
        over_since: float | None = None
        shown: Any = None
        spec: ShownSpec | None = None
        yield b"retry: 1000\n\n"
        while True:
            ask = Ask(self._key, self._kind, self._tail, self._with_progress, spec)
            try:
                seen = await self._context.looks.ask(
                    self._job_id, ask, partial(look, self._context, self._job_id), within_seconds=pause
                )
            except StokerError as error:  # the client resumes after the last entry it has
                logger.warning("the stream of job %s ended early: %s", self._job_id, error.message)
                return
            if seen is None:  # the server is shutting down
                return
            if not seen.is_key_valid:
                logger.warning("the stream of job %s ended early: the API key was revoked", self._job_id)
                return
            now = time.monotonic()
            messages = [entry.content for entry in seen.entries]
            if seen.progress is not None:
                spec = seen.progress.spec
                if seen.progress.visible != shown:
                    messages.append(seen.progress.content)
                    shown = seen.progress.visible
            if messages:
                yield b"".join(messages)
                sent_at = now
            elif now - sent_at >= _KEEP_ALIVE_SECONDS:
                yield b": keep-alive\n\n"
                sent_at = now
            if seen.is_over and not seen.has_more:
                over_since = now if over_since is None else over_since
                if not self._kind.until_leases_end or now - over_since >= _LAST_LINES_SECONDS:
                    yield b"event: end\ndata: {}\n\n"
                    return
            pause = min(max(_FIRST_PAUSE_SECONDS, _PAUSE_SHARE * (now - started)), _LONGEST_PAUSE_SECONDS)
