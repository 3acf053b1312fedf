"""Lines over the pipes between processes: written whole from any thread, and split when they are read."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from jobs.errors import MachineError

_READ_BYTES = 65536


class ProtocolError(MachineError):
    """A line from another process of the worker could not be understood."""

    code = "protocol_error"


def write_all(fd: int, data: bytes) -> None:
    """Write all the data, in as many writes as the pipe needs.

    Raises:
        BrokenPipeError: The other end of the pipe is closed.
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
        """Write a line, which must include its newline."""
        with self._lock:
            write_all(self._fd, line)


class LineSplitter:
    """Splits a stream of bytes into lines."""

    def __init__(self, longest: int | None = None) -> None:
        """
        Args:
            longest: Number of bytes after which a line counts as complete even without a newline.
        """
        self._partial = b""
        self._longest = longest

    def split(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes, without newlines."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if self._longest is not None and len(self._partial) > self._longest:
            lines.append(self._partial)
            self._partial = b""
        return lines

    def rest(self) -> list[bytes]:
        """The last line, if it has no newline."""
        return [self._partial] if self._partial else []


def read_some(fd: int) -> bytes | None:
    """The next bytes of a pipe: empty at its end; None if a non-blocking pipe has nothing to read now."""
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None


def read_lines(fd: int) -> Iterator[bytes]:
    """Yield each complete line of a blocking pipe as it comes, without its newline, until the pipe ends."""
    splitter = LineSplitter()
    while chunk := read_some(fd):
        yield from splitter.split(chunk)
