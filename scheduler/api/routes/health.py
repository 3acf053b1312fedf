"""Health route: the state of each part, for load balancers, `stoker doctor` and clients that look for an API."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from scheduler.api.access.auth import Credentials, bearer, check_host
from scheduler.api.context import InContext
from scheduler.api.errors import ErrorBody
from scheduler.api.views.health_views import Health, check_health

router = APIRouter(tags=["health"])


@router.get(
    "/healthz",
    response_model=Health,
    responses={
        503: {"model": Health, "description": "The database cannot be used, so no job can be accepted."},
        **{status: {"model": ErrorBody, "description": "The request names another host."} for status in (401, 403)},
    },
    openapi_extra={"security": [{bearer.scheme_name: []}, {}]},  # a key or None
)
def get_health(request: Request, context: InContext, credentials: Credentials) -> JSONResponse:
    """The health of the service. Needs no key. Returns 200 while jobs are accepted, 503 while they are not."""
    check_host(request, context, credentials)
    health = check_health(context.settings, context.database)
    status = 503 if health.status == "unavailable" else 200
    return JSONResponse(health.model_dump(mode="json", by_alias=True), status_code=status)
