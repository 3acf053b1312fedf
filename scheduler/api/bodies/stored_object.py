"""Responses that stream an object of the store, whole or a range of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from jobs.db.tables import ApiKey
from scheduler.api.access.live_key import while_valid
from scheduler.api.context import Context
from scheduler.api.errors import ErrorBody, error_response

_BLOCK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)

RANGES: dict[int | str, dict[str, Any]] = {
    206: {"content": {"application/octet-stream": {}}, "description": "The requested range of bytes."},
    416: {"model": ErrorBody, "description": "The file does not have these bytes; `content-range` has its size."},
}
"""Further responses of routes that stream an object."""


def stream_object(
    request: Request, context: Context, key: ApiKey, object_key: str, *, num_bytes: int, sha256: str
) -> Response:
    """Return a response with a stored object's bytes. If the object turns out too short, the connection breaks.

    Args:
        request: The request; its `Range` header may ask for a part. Several ranges are answered with the whole.
        context: The app's context.
        key: The request's API key; if it is revoked, the response breaks off.
        object_key: The object's key in the store.
        num_bytes: The object's size.
        sha256: The object's digest.

    Raises:
        NotFound: There is no such object; raised before the response starts.
        ServiceUnavailable: The store cannot be reached.
    """
    etag = f'"{sha256}"'
    requested = request.headers.get("range", "")
    if requested and request.headers.get("if-range", etag) == etag:
        start, stop = _range(requested, num_bytes)
    else:
        start, stop = 0, num_bytes
    headers = {"accept-ranges": "bytes", "etag": etag, "x-content-sha256": sha256}
    if start >= stop and num_bytes:
        headers["content-range"] = f"bytes */{num_bytes}"
        message = f"range: the requested bytes are beyond the end of the file, which has {num_bytes} bytes"
        return error_response(416, message, code="invalid_request", param="range", headers=headers)
    is_whole = (start, stop) == (0, num_bytes)
    headers["content-length"] = str(stop - start)
    if not is_whole:
        headers["content-range"] = f"bytes {start}-{stop - 1}/{num_bytes}"
    return StreamingResponse(
        while_valid(_blocks(context.store.open(object_key), start, stop), context, key),
        status_code=200 if is_whole else 206,
        media_type="application/octet-stream",
        headers=headers,
    )


def _range(requested: str, num_bytes: int) -> tuple[int, int]:
    """First byte and end (exclusive) of the range; the whole object if the header's form is not supported."""
    found = _RANGE.fullmatch(requested.replace(" ", ""))
    if found is None or found[1] == found[2] == "":
        return 0, num_bytes
    if not found[1]:  # the last bytes
        return max(0, num_bytes - int(found[2])), num_bytes
    first = int(found[1])
    if found[2] and int(found[2]) < first:  # not a valid range: ignored
        return 0, num_bytes
    return first, min(int(found[2]) + 1, num_bytes) if found[2] else num_bytes


def _blocks(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    with file:
        if start:
            file.seek(start)
        left = stop - start
        while left and (block := file.read(min(_BLOCK_BYTES, left))):
            left -= len(block)
            yield block
