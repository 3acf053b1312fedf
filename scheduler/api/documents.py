"""Reading a request's JSON or YAML document, bounded, as it comes in."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from jobs.errors import TooLarge
from scheduler.plain_data import parse_document

MAX_DOCUMENT_BYTES = 10 * 2**20
MAX_YAML_BYTES = 256 * 2**10
"""Less than for JSON, since reading YAML takes a few seconds for each megabyte."""
_YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})


async def read_document(request: Request) -> dict[str, Any]:
    """The request's body as a mapping; YAML where the content type says so, else JSON. A dependency.

    Raises:
        TooLarge: it is longer than the limit of its kind; no more than that was read.
        InvalidSpec: it is no mapping of plain values.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_yaml = media_type in _YAML_TYPES
    limit = MAX_YAML_BYTES if is_yaml else MAX_DOCUMENT_BYTES
    too_large = TooLarge(f"the body is larger than {limit // 2**10} KiB; upload a large input as a file")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > limit:
            raise too_large
    # In a thread of the pool: others are served meanwhile
    return await run_in_threadpool(parse_document, bytes(body), name="the body", is_yaml=is_yaml)


def yaml_or_json(schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's description of such a body."""
    types = ("application/json", "application/yaml")
    return {"requestBody": {"required": True, "content": {name: {"schema": schema} for name in types}}}
