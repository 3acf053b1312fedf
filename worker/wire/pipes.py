"""Lines over the pipes between our processes: written whole from any thread, read and cut as they come."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

_READ_BYTES = 65536


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, however little the pipe takes at once.

    Raises:
        BrokenPipeError: Nobody reads any more.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


class LineWriter:
    """Writes lines into a pipe, from any thread, each at once and whole."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def write(self, line: bytes) -> None:
        """Write a line, its end included."""
        with self._lock:
            write_all(self._fd, line)


class LineSplitter:
    """Cuts a stream of bytes into lines."""

    def __init__(self, longest: int | None = None) -> None:
        """
        Args:
            longest: Number of bytes without a line end that count as a line.
        """
        self._partial = b""
        self._longest = longest

    def split(self, chunk: bytes) -> list[bytes]:
        """The lines that are complete with this chunk, without their ends."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if self._longest is not None and len(self._partial) > self._longest:
            lines.append(self._partial)
            self._partial = b""
        return lines

    def rest(self) -> list[bytes]:
        """The last line, where it has no end."""
        return [self._partial] if self._partial else []


def read_some(fd: int) -> bytes | None:
    """Some bytes of a pipe; none at its end; None where there is nothing to read now and the pipe does not block."""
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None


def read_lines(fd: int) -> Iterator[bytes]:
    """Each whole line of a pipe that blocks, as it comes, without its end; it ends with the pipe."""
    splitter = LineSplitter()
    while chunk := read_some(fd):
        yield from splitter.split(chunk)
