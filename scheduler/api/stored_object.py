"""Answers whose body is an object of the store, read as it is sent, whole or a range of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from jobs.db.tables import ApiKey
from scheduler.api.context import Context
from scheduler.api.errors import ErrorBody, error_response
from scheduler.api.live_key import while_valid

_BLOCK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)

RANGES: dict[int | str, dict[str, Any]] = {
    206: {"content": {"application/octet-stream": {}}, "description": "The range of bytes that was asked for."},
    416: {"model": ErrorBody, "description": "The file has no such bytes; `content-range` says how many it has."},
}
"""What a route of such answers can answer as well."""


def stream_object(
    request: Request, context: Context, key: ApiKey, object_key: str, *, num_bytes: int, sha256: str
) -> Response:
    """An answer with a stored object's bytes. An object that is shorter than it was breaks the connection.

    Args:
        request: whose `Range` may ask for a part of it. Several ranges in one request are answered with the whole.
        context: of the app.
        key: that was sent; when it is revoked, the answer breaks off.
        object_key: of the object.
        num_bytes: of the object.
        sha256: of the object.

    Raises:
        NotFound: there is no such object; known before the answer begins.
        ServiceUnavailable: the store cannot be reached.
    """
    etag = f'"{sha256}"'
    wanted = request.headers.get("range", "")
    if wanted and request.headers.get("if-range", etag) == etag:
        start, stop = _range(wanted, num_bytes)
    else:
        start, stop = 0, num_bytes
    headers = {"accept-ranges": "bytes", "etag": etag, "x-content-sha256": sha256}
    if start >= stop and num_bytes:
        headers["content-range"] = f"bytes */{num_bytes}"
        message = f"range: the file has {num_bytes} bytes, and none of those that were asked for"
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


def _range(wanted: str, num_bytes: int) -> tuple[int, int]:
    """The first byte and the one after the last; all of them where the header is of no form that is known here."""
    found = _RANGE.fullmatch(wanted.replace(" ", ""))
    if found is None or found[1] == found[2] == "":
        return 0, num_bytes
    if not found[1]:  # the last ones
        return max(0, num_bytes - int(found[2])), num_bytes
    first = int(found[1])
    if found[2] and int(found[2]) < first:  # not a range, so that it is passed over
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
