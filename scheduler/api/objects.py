"""Answers whose body is an object of the store, read as it is sent."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.responses import StreamingResponse

from jobs.store import Store

_BLOCK_BYTES = 1 << 20


def stream_object(
    store: Store, key: str, *, num_bytes: int, sha256: str, media_type: str = "application/octet-stream"
) -> StreamingResponse:
    """An answer with a stored object's bytes. An object that is shorter than it was breaks the connection.

    Raises:
        NotFound: there is no such object; known before the answer begins.
        ServiceUnavailable: the store cannot be reached.
    """
    file = store.open(key)

    def blocks() -> Iterator[bytes]:
        with file:
            while block := file.read(_BLOCK_BYTES):
                yield block

    headers = {"content-length": str(num_bytes), "x-content-sha256": sha256}
    return StreamingResponse(blocks(), media_type=media_type, headers=headers)
