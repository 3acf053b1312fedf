"""Error responses: always `{"error": {message, type, param, code}}`. Every response has a request id."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import StokerError, TooManyRequests
from jobs.messages import first_fault, short, short_message

logger = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """The error of a failed request."""

    message: str = Field(description="What happened, in one sentence.")
    type: str = Field(
        description="`invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_exceeded`, "
        "`server_error`."
    )
    param: str | None = Field(
        description="Dotted name of the invalid field of the spec or the request; null if no field is invalid."
    )
    code: str = Field(description="Stable error code for programs.")


class ErrorBody(BaseModel):
    """The body of every response with a status of 400 or above."""

    error: ErrorDetail


_DESCRIPTIONS = {
    400: "The request is invalid; the message names the field.",
    401: "The key is missing or not valid.",
    403: "The key is valid, but the request is not allowed.",
    404: "The object does not exist, or the key cannot access it.",
    408: "The client stopped sending before the end of the request.",
    409: "The current state of the object does not allow the request.",
    413: "The body is too large.",
    429: "The project has reached a limit. Try again after the seconds in `retry-after`.",
    500: "Internal error. The server's log has the details under the request id.",
    503: "The database, the store or the hub cannot be reached. Try again.",
}
_EVERYWHERE = (401, 429, 500, 503)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a router or route: the given error statuses plus those of every route that needs a key."""
    return {
        status: {"model": ErrorBody, "description": _DESCRIPTIONS[status]}
        for status in sorted({*statuses, *_EVERYWHERE})
    }


def error_response(
    status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error response."""
    extra = dict(headers or {})
    if status == HTTPStatus.CONFLICT:
        extra["x-should-retry"] = "false"  # OpenAI's SDK retries a 409 otherwise
    elif status == HTTPStatus.REQUEST_TIMEOUT:
        extra["connection"] = "close"  # the client may still be sending the rest of the request
    elif status == HTTPStatus.UNAUTHORIZED:
        extra["www-authenticate"] = "Bearer"
    elif status == HTTPStatus.SERVICE_UNAVAILABLE:
        extra["retry-after"] = "1"
    detail = ErrorDetail(message=message, type=_type_of(status), param=param, code=code)
    return JSONResponse({"error": detail.model_dump()}, status_code=status, headers=extra)


def add_error_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Give all errors of `app` the same shape, and every response an `x-request-id` header.

    Args:
        app: The application.
        routes: All routes of the application; a 405 lists their methods.
    """
    app.state.routes = routes
    app.add_exception_handler(StokerError, _on_stoker_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_middleware(RequestEdge)


class RequestEdge:
    """The outermost layer: assigns request ids, answers HEAD like GET without a body, and turns uncaught
    exceptions into a 500 without internals."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        started = False
        if scope["method"] == "HEAD":
            scope, receive, send = _without_body(scope, receive, send)

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except asyncio.CancelledError:  # the server is shutting down and the grace period is over: end the task cleanly
            logger.info("%s %s %s was aborted by the shutdown", request_id, scope["method"], scope["path"])
            if not started:
                response = error_response(503, "the API is shutting down; try again", code="service_unavailable")
                await response(scope, receive, send_named)
        except Exception:
            if started:  # too late for a status: break the connection, so that the response does not look complete
                logger.error(
                    "%s %s %s failed after the response had started", request_id, scope["method"], scope["path"]
                )
                raise
            logger.exception("%s %s %s failed", request_id, scope["method"], scope["path"])
            response = error_response(
                500, f"internal error; the server's log has the details under {request_id}", code="internal_error"
            )
            await response(scope, receive, send_named)


def _without_body(scope: Scope, receive: Receive, send: Send) -> tuple[Scope, Receive, Send]:
    """Run a HEAD request as GET and stop after the headers."""
    ended = asyncio.Event()

    async def receive_until_ended() -> Message:
        """Receive from the client; once the response has ended, report a disconnect, which ends a stream."""
        if ended.is_set():
            return {"type": "http.disconnect"}
        waits = {asyncio.ensure_future(receive()), asyncio.ensure_future(ended.wait())}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            found = next(iter(done)).result()
            return found if isinstance(found, dict) else {"type": "http.disconnect"}
        finally:
            for one in waits:
                one.cancel()

    async def send_head(message: Message) -> None:
        if ended.is_set():
            return
        await send(message)
        if message["type"] == "http.response.start":
            ended.set()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return {**scope, "method": "GET"}, receive_until_ended, send_head


def _methods_at(request: Request) -> list[str]:
    """The methods that a request's path supports."""
    methods: set[str] = set()
    for route in request.app.state.routes:
        match, _ = route.matches(request.scope)
        if match != Match.NONE:
            methods.update(route.methods or ())
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def _on_stoker_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StokerError)
    if error.http_status >= 500:
        logger.warning("%s: %s", error.code, error.message)
    headers = {"retry-after": str(error.retry_after_seconds)} if isinstance(error, TooManyRequests) else None
    return error_response(error.http_status, error.message, code=error.code, param=error.param, headers=headers)


def _on_invalid_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    name, message = first_fault(error.errors())
    place, _, field = name.partition(".")  # query, path or body
    param = field or place
    return error_response(400, short_message(f"{param}: {message}"), code="invalid_request", param=param)


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == HTTPStatus.NOT_FOUND:
        return error_response(404, "this path does not exist", code="not_found", headers=headers)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{short(request.method, 40)} is not allowed on this path"
        own = (
            headers.get("allow", "").replace(" ", "").split(",")
        )  # one route's methods; OPTIONS etc. of the document's path list all
        headers["allow"] = ", ".join(_methods_at(request) or sorted(own))
        return error_response(405, message, code="method_not_allowed", headers=headers)
    return error_response(error.status_code, str(error.detail), code="invalid_request", headers=headers)


def _on_disconnect(request: Request, _error: Exception) -> JSONResponse:
    logger.info("%s %s: the client disconnected before the end of its request", request.method, request.url.path)
    return error_response(400, "the client disconnected before the end of the request", code="client_disconnected")


def _type_of(status: int) -> str:
    if status >= 500:
        return "server_error"
    return {401: "authentication_error", 403: "permission_error", 429: "rate_limit_exceeded"}.get(
        status, "invalid_request_error"
    )
