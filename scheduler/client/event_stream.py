"""How the client reads a body that is still to come: line by line, and server-sent events of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import orjson


@dataclass(frozen=True, slots=True)
class Message:
    """One server-sent event."""

    id: int
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


def parse_events(lines: Iterator[bytes]) -> Iterator[Message]:
    """Server-sent events, https://html.spec.whatwg.org/multipage/server-sent-events.html, data being one JSON line."""
    event_id, name, data = 0, "message", b""
    for line in lines:
        field, _, value = line.partition(b": ")
        if not line:
            if data:
                yield Message(event_id, name, orjson.loads(data))
            event_id, name, data = 0, "message", b""
        elif field == b"id":
            event_id = int(value)
        elif field == b"event":
            name = value.decode()
        elif field == b"data":
            data += value


def until(deadline: float | None, lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines that come before a time of the monotonic clock, then TimeoutError; None: all of them."""
    for line in lines:
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError("the end has not come in time")
        yield line
