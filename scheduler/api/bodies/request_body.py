"""Read a request's JSON or YAML body with a size limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from jobs.errors import RequestTimeout, TooLarge, UserError
from jobs.messages import first_fault
from jobs.specs.bounds import MOST_FIELDS
from scheduler.api.context import Context
from scheduler.client.plain_data import parse_document

RequestModel = TypeVar("RequestModel", bound=BaseModel)

MAX_DOCUMENT_BYTES = 10 * 2**20
MAX_YAML_BYTES = 256 * 2**10
"""Smaller than for JSON, since parsing YAML takes a few seconds per megabyte."""
_YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})


async def read_document(request: Request) -> dict[str, Any]:
    """Return the request's body as a mapping; YAML if the content type says so, else JSON. A dependency.

    Raises:
        TooLarge: The body is longer than the limit of its type; no more than that was read.
        RequestTimeout: The client stopped sending.
        InvalidSpec: The body is not a mapping of plain values.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_yaml = media_type in _YAML_TYPES
    limit = MAX_YAML_BYTES if is_yaml else MAX_DOCUMENT_BYTES
    too_large = TooLarge(f"the body is larger than {limit // 2**10} KiB; upload large inputs as files")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    stream = aiter(request.stream())
    while (block := await next_block(request, stream)) is not None:
        body += block
        if len(body) > limit:
            raise too_large
    # In a thread pool, so that other requests are served meanwhile.
    return await run_in_threadpool(parse_document, bytes(body), name="the body", is_yaml=is_yaml)


async def next_block(request: Request, stream: AsyncIterator[bytes]) -> bytes | None:
    """Return the next block of a request's body, or None at its end.

    Raises:
        RequestTimeout: The client stopped sending.
    """
    context: Context = request.app.state.context
    seconds = context.settings.client_idle_seconds
    try:
        async with asyncio.timeout(seconds):
            return await anext(stream, None)
    except TimeoutError as error:
        raise RequestTimeout(
            f"received no data of the request's body for {seconds:g} s; send the request again"
        ) from error


def parse_request(form: type[RequestModel], document: dict[str, Any], *, noun: str) -> RequestModel:
    """Validate a document as a request.

    Args:
        form: The pydantic model of the request.
        document: The parsed body.
        noun: What is requested, with its article, for error messages.

    Raises:
        UserError: The document is invalid; the message names the first invalid field.
    """
    if len(document) > MOST_FIELDS:  # each unknown one would become a separate error
        raise UserError(f"{noun} can have at most {MOST_FIELDS} parameters, not {len(document)}")
    try:
        return form.model_validate(document)
    except ValidationError as error:
        param, message = first_fault(error.errors())
        if error.errors()[0]["type"] == "extra_forbidden":
            message = f"is not a parameter of {noun}"
        raise UserError(f"{param}: {message}", param=param) from error


def yaml_or_json(schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI description of a body that is JSON or YAML."""
    types = ("application/json", "application/yaml")
    return {"requestBody": {"required": True, "content": {name: {"schema": schema} for name in types}}}
