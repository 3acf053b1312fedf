"""An object of the artifact store while it is being written: counted, hashed and limited in size."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from jobs.errors import ServiceUnavailable, TooLarge
from jobs.messages import reason

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in the store, as it was when it was written."""

    key: str
    num_bytes: int
    sha256: str
    """Hexadecimal SHA-256 digest of the content."""


class Draft(io.RawIOBase):
    """An object that is being written, counted and hashed. It gets its key only when its `create` block ends."""

    def __init__(self, key: str, handle: BinaryIO, max_bytes: int | None) -> None:
        super().__init__()
        self._key = key
        self._handle = handle
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._digest = hashlib.sha256()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Append all of `data`; returns its size in bytes.

        Raises:
            TooLarge: The object would be larger than `max_bytes`.
            ServiceUnavailable: The disk is full or failing.
        """
        view = memoryview(data).cast("B")
        if self._max_bytes is not None and self._num_bytes + view.nbytes > self._max_bytes:
            raise TooLarge(f"the upload is larger than the limit of {self._max_bytes} bytes")
        with failing_writes(self._key, OSError):
            self._handle.write(view)
        self._digest.update(view)
        self._num_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Number of bytes written so far."""
        return self._num_bytes

    @property
    def stored(self) -> StoredObject:
        """The object that is in the store after the `create` block has ended."""
        return StoredObject(self._key, self._num_bytes, self._digest.hexdigest())


@contextmanager
def failing_writes(key: str, failures: type[Exception]) -> Iterator[None]:
    """Turn a failed write of this object into ServiceUnavailable."""
    try:
        yield
    except failures as error:
        raise ServiceUnavailable(f"the artifact store cannot write '{key}': {reason(error)}") from error
