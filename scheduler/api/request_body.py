"""Reading a request's JSON or YAML document, bounded, as it comes in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from jobs.errors import RequestTimeout, TooLarge, UserError
from jobs.messages import short
from jobs.specs.bounds import MOST_FIELDS
from scheduler.api.context import Context
from scheduler.client.plain_data import parse_document

Asked = TypeVar("Asked", bound=BaseModel)

MAX_DOCUMENT_BYTES = 10 * 2**20
MAX_YAML_BYTES = 256 * 2**10
"""Less than for JSON, since reading YAML takes a few seconds for each megabyte."""
_YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})


async def read_document(request: Request) -> dict[str, Any]:
    """The request's body as a mapping; YAML where the content type says so, else JSON. A dependency.

    Raises:
        TooLarge: it is longer than the limit of its kind; no more than that was read.
        RequestTimeout: nothing of it came for too long.
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
    stream = aiter(request.stream())
    while (block := await next_block(request, stream)) is not None:
        body += block
        if len(body) > limit:
            raise too_large
    # In a thread of the pool: others are served meanwhile
    return await run_in_threadpool(parse_document, bytes(body), name="the body", is_yaml=is_yaml)


async def next_block(request: Request, stream: AsyncIterator[bytes]) -> bytes | None:
    """The next block of a request's body, or None at its end.

    Raises:
        RequestTimeout: nothing came for too long.
    """
    context: Context = request.app.state.context
    seconds = context.settings.client_idle_seconds
    try:
        async with asyncio.timeout(seconds):
            return await anext(stream, None)
    except TimeoutError as error:
        raise RequestTimeout(f"nothing of the request's body came for {seconds:g} s") from error


def parse_request(form: type[Asked], document: dict[str, Any], *, noun: str) -> Asked:
    """A document as what it asks for.

    Args:
        form: of the request.
        document: as it was read.
        noun: what is asked for, with its article, for the error.

    Raises:
        UserError: it does not have that form; the message names the first field at fault.
    """
    if len(document) > MOST_FIELDS:  # each unknown one would become an error of its own
        raise UserError(f"{noun} has at most {MOST_FIELDS} parameters, not {len(document)}")
    try:
        return form.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(short(str(part)) for part in first["loc"])
        message = f"is not a parameter of {noun}" if first["type"] == "extra_forbidden" else first["msg"]
        raise UserError(f"{param}: {message}", param=param) from error


def yaml_or_json(schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's description of such a body."""
    types = ("application/json", "application/yaml")
    return {"requestBody": {"required": True, "content": {name: {"schema": schema} for name in types}}}
