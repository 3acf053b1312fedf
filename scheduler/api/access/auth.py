"""Authentication: bearer keys, required by every route under /v1.

A key belongs to a project, and so does everything created with it; `scope` says what a key sees.
"""

from __future__ import annotations

import ipaddress
import logging
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from jobs.config.settings import ApiAddress
from jobs.db.tables import ApiKey
from jobs.errors import Forbidden, ServiceUnavailable, Unauthorized
from scheduler.admin.keys import NewKey, create_key, ensure_local_key, list_keys, revoke_key
from scheduler.api.context import Context, InContext

logger = logging.getLogger(__name__)

__all__ = [
    "Credentials",
    "Key",
    "NewKey",
    "bearer",
    "check_host",
    "create_key",
    "ensure_local_key",
    "is_loopback",
    "list_keys",
    "require_key",
    "revoke_key",
]

bearer = HTTPBearer(
    auto_error=False,
    description="A key from `stoker keys create`, or the key in the file `local.key` of the data directory.",
)
"""Parses the Authorization header; None if a request has none."""


Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
"""A request's credentials, as a dependency."""


def require_key(context: InContext, credentials: Credentials) -> ApiKey:
    """Return the request's API key; a dependency of every route under /v1.

    Raises:
        Unauthorized: The request has no key, or the key is unknown or revoked.
        TooManyRequests: The project has reached its request rate.
        ServiceUnavailable: The database cannot be reached.
    """
    if credentials is None:
        raise Unauthorized("the request needs an API key; send the header 'Authorization: Bearer <key>'")
    try:
        key = context.keys.find(credentials.credentials)
    except ServiceUnavailable as error:  # its message may name hosts and users, and this client is not authenticated
        logger.warning("cannot look up an API key: %s", error)
        raise ServiceUnavailable("the database cannot be reached; try again") from error
    if key is None:
        raise Unauthorized("the API key is not valid")
    context.throttle.admit(key.project)
    return key


Key = Annotated[ApiKey, Depends(require_key)]


# -- routes without a key ------------------------------------------------------------------------------------------


def check_host(request: Request, context: Context, credentials: HTTPAuthorizationCredentials | None) -> None:
    """Reject a request without a key whose `Host` header does not name this machine.

    Web pages in a browser on this machine can reach an API on loopback under a host name of their own that resolves to
    127.0.0.1 (DNS rebinding). IP addresses and `localhost` are safe. An API that listens on other addresses may be
    reached by any name.

    Raises:
        Forbidden: The `Host` header names another machine, and the request has no key.
        Unauthorized: The request's key is not valid.
    """
    settings = context.settings
    if not is_loopback(settings.host) or _names_this_machine(request.headers.get("host", ""), settings):
        return
    if credentials is None:
        raise Forbidden(
            "this API accepts requests to localhost or an IP address; use one of these in the URL, or send an API key"
        )
    require_key(context, credentials)


def is_loopback(host: str) -> bool:
    """Whether an address to bind is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names_this_machine(host: str, api: ApiAddress) -> bool:
    """Whether a `Host` header is an IP address or a name of this machine; a missing header (HTTP/1.0) counts as one."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if not host or name in {"localhost", api.host.lower()} or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
