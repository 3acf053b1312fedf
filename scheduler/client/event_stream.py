"""How the client reads a body that is still to come: JSON lines, and server-sent events."""

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
    """The number from which an interrupted stream goes on; 0 before the first number."""
    name: str
    data: dict[str, Any]


def read_lines(response: httpx.Response) -> Iterator[bytes]:
    r"""Lines without their `\n`. httpx's own would also cut at U+2028 inside a JSON text."""
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
    """The events of a stream whose data is JSON. Events without data are only signs of life, and are left out.

    Args:
        response: The answer, its body not read yet.
        deadline: A time of the monotonic clock.

    Raises:
        TimeoutError: Something arrived after the deadline.
    """
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = _Until(deadline, response.stream)
    for event in EventSource(response).iter_sse():
        if event.data:
            yield Message(int(event.id or 0), event.event, orjson.loads(event.data))


class _Until(httpx.SyncByteStream):
    """A body that ends with TimeoutError at the first block, signs of life included, after a deadline."""

    def __init__(self, deadline: float | None, stream: httpx.SyncByteStream) -> None:
        self._deadline = deadline
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        for block in self._stream:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise TimeoutError("the end has not come in time")
            yield block

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
