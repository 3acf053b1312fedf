"""A file on its way to the API: of the size that it had at first, and with a report of each block that is read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path


class CountedFile(io.FileIO):
    """A file that is read for an upload. One that grows meanwhile ends at the size that the request has announced."""

    def __init__(self, path: Path, on_progress: Callable[[int], None]) -> None:
        """
        Args:
            path: The file.
            on_progress: Called with the number of bytes read so far.
        """
        super().__init__(path)
        self._num_bytes = os.fstat(self.fileno()).st_size
        self._on_progress = on_progress

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` of the bytes that are left."""
        left = self._num_bytes - self.tell()
        block = super().read(left if size is None or size < 0 else min(size, left))
        if block:
            self._on_progress(self.tell())
        return block
