"""Health route: the state of each part, for load balancers, `stoker doctor` and clients that look for an API."""

from __future__ import annotations

import functools
import logging

import redis
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from jobs.config.access_rules import AccessRules
from jobs.config.locations import Locations
from jobs.db import migrations
from jobs.db.database import Database
from jobs.errors import ServiceUnavailable
from jobs.queue import connect, trouble
from scheduler.admin.schema import read_revision
from scheduler.admin.version import version
from scheduler.api.auth import Credentials, bearer, check_host
from scheduler.api.context import InContext
from scheduler.api.errors import ErrorBody
from scheduler.api.schemas import Health, HealthStatus, Schema
from scheduler.client.local_machine import host_id
from scheduler.control.leader import has_leader

logger = logging.getLogger(__name__)

_REDIS_SECONDS = 1.0

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
    """Whether Stoker works. Needs no key. Returns 200 while jobs are accepted, 503 while they are not."""
    check_host(request, context, credentials)
    health = check_health(context.settings, context.database)
    status = 503 if health.status == "unavailable" else 200
    return JSONResponse(health.model_dump(mode="json", by_alias=True), status_code=status)


def check_health(rules: AccessRules, database: Database) -> Health:
    """Check the database, its schema, Redis and the scheduler."""
    schema: Schema | None = None
    scheduler = "not known while the database is away"
    try:
        schema = Schema(current=read_revision(database), needed=_needed_schema())
        database_state = (
            "ok" if schema.current == schema.needed else "its schema is not current: run `stoker db upgrade`"
        )
        if database_state == "ok":
            with database.read() as session:
                scheduler = "ok" if has_leader(session) else "no scheduler is running"
    except ServiceUnavailable as error:
        logger.warning("%s", error.message)
        database_state = "cannot be reached"  # without a key, the response says no more than this
    redis_says = redis_state(rules)
    works: HealthStatus = "ok" if redis_says == scheduler == "ok" else "degraded"
    return Health(
        status=works if database_state == "ok" else "unavailable",
        version=version(),
        host_id=host_id(),
        input_paths=bool(rules.input_roots),
        database=database_state,
        db_schema=schema,
        redis=redis_says,
        scheduler=scheduler,
    )


def redis_state(locations: Locations) -> str:
    """`ok`, or why the slots' doorbells cannot be rung."""
    try:
        with connect(locations, timeout_seconds=_REDIS_SECONDS) as client:
            return trouble(client) or "ok"
    except (redis.RedisError, OSError) as error:  # errors while closing do not matter here
        return f"cannot be reached: {type(error).__name__}"


@functools.cache
def _needed_schema() -> str:
    return migrations.head()
