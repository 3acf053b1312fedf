"""Read streamed response bodies: JSON lines, and server-sent events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
from httpx_sse import EventSource


@dataclass(frozen=True, slots=True)
class Message:
    """One server-sent event."""

    id: int
    """Number after which an interrupted stream resumes; 0 if the stream has sent no number yet."""
    name: str
    data: dict[str, Any]


def read_lines(response: httpx.Response) -> Iterator[bytes]:
    r"""Yield lines without their `\n`. The line iterator of httpx would also split at U+2028 inside a JSON string."""
    rest: list[bytes] = []
    for block in response.iter_bytes():
        first, *lines = block.split(b"\n")
        rest.append(first)
        for line in lines:
            yield b"".join(rest)
            rest = [line]
    if any(rest):
        yield b"".join(rest)


def read_events(response: httpx.Response, *, deadline: float | None = None) -> Iterator[Message]:
    """Yield the events of a stream whose data is JSON. Events without data are keep-alives and are skipped.

    Args:
        response: Response whose body has not been read.
        deadline: Seconds of the monotonic clock.

    Raises:
        TimeoutError: A block arrived after the deadline.
    """
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = _Until(deadline, response.stream)
    for event in EventSource(response).iter_sse():
        if event.data:
            yield Message(int(event.id or 0), event.event, orjson.loads(event.data))


class _Until(httpx.SyncByteStream):
    """A body that raises TimeoutError at the first block (keep-alives included) after a deadline."""

    def __init__(self, deadline: float | None, stream: httpx.SyncByteStream) -> None:
        self._deadline = deadline
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        for block in self._stream:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise TimeoutError("the stream did not end in time")
            yield block

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
