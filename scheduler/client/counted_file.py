"""A file for an upload, which keeps its initial size and reports each block that is read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path


class CountedFile(io.FileIO):
    """A file that is read for an upload. If it grows meanwhile, reading stops at the announced size."""

    def __init__(self, path: Path, on_progress: Callable[[int], None]) -> None:
        """
        Args:
            path: File to read.
            on_progress: Called with the number of bytes read so far.
        """
        super().__init__(path)
        self._num_bytes = os.fstat(self.fileno()).st_size
        self._on_progress = on_progress

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` of the remaining bytes."""
        left = self._num_bytes - self.tell()
        block = super().read(left if size is None or size < 0 else min(size, left))
        if block:
            self._on_progress(self.tell())
        return block
