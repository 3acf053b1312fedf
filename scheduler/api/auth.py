"""Who may call: bearer keys, asked for by every route under /v1.

A key names a project. What it makes belongs to that project; `scope` says what it sees.
"""

from __future__ import annotations

import ipaddress
import logging
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from jobs.config.settings import Settings
from jobs.db.tables import ApiKey
from jobs.errors import Forbidden, ServiceUnavailable, Unauthorized
from scheduler.admin.keys import NewKey, create_key, ensure_local_key, find_key, list_keys, revoke_key
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

bearer = HTTPBearer(auto_error=False, description="A key made by `stoker keys create`, or the local key file's.")
"""What a request sends; None where it sends none."""


Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
"""What a request sends; a dependency."""


def require_key(context: InContext, credentials: Credentials) -> ApiKey:
    """The key that a request carries; a dependency of every route under /v1.

    Raises:
        Unauthorized: it carries none, or one that is unknown or revoked.
        TooManyRequests: its project has sent enough for now.
        ServiceUnavailable: that cannot be found out now.
    """
    if credentials is None:
        raise Unauthorized("this needs an API key: send 'Authorization: Bearer <key>'")
    try:
        key = find_key(context.database, credentials.credentials)
    except ServiceUnavailable as error:  # its words may name hosts and users, to somebody who is not known yet
        logger.warning("no key can be looked up: %s", error)
        raise ServiceUnavailable("the database cannot be used now; try again") from error
    if key is None:
        raise Unauthorized("the API key is not valid")
    context.throttle.admit(key.project)
    return key


Key = Annotated[ApiKey, Depends(require_key)]


# -- routes without a key ------------------------------------------------------------------------------------------


def check_host(request: Request, context: Context, credentials: HTTPAuthorizationCredentials | None) -> None:
    """Refuse a request without a key that was made for another host than this machine.

    An API that listens on loopback only is reached by pages in a browser of this machine too, under a name of theirs
    that they let point here (DNS rebinding). Addresses and `localhost` are no such names. An API that listens on more
    is there to be reached by any name.

    Raises:
        Forbidden: its `Host` is such a name, and it carries no key.
        Unauthorized: the key that it carries is not valid.
    """
    settings = context.settings
    if not is_loopback(settings.host) or _names_this_machine(request.headers.get("host", ""), settings):
        return
    if credentials is None:
        raise Forbidden("this API listens on this machine only: name it by an address or localhost, or send a key")
    require_key(context, credentials)


def is_loopback(host: str) -> bool:
    """Whether an address to bind is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names_this_machine(host: str, settings: Settings) -> bool:
    """Whether a `Host` header is an address or a name of this machine; absent, as in HTTP/1.0, it is."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if not host or name in {"localhost", settings.host.lower()} or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
