"""Who may call: bearer keys, asked for by every route under /v1.

A key names a project. What it makes belongs to that project; `scope` says what it sees.
"""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from jobs.errors import ServiceUnavailable, Unauthorized
from jobs.tables import ApiKey
from scheduler.api.context import InContext
from scheduler.keys import NewKey, create_key, ensure_local_key, find_key, list_keys, revoke_key

logger = logging.getLogger(__name__)

__all__ = [
    "Key",
    "NewKey",
    "bearer",
    "create_key",
    "ensure_local_key",
    "list_keys",
    "require_key",
    "revoke_key",
]

bearer = HTTPBearer(auto_error=False, description="A key made by `stoker keys create`, or the local key file's.")
"""What a request sends; None where it sends none."""


def require_key(
    context: InContext, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> ApiKey:
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
