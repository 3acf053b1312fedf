"""The health of the service as JSON, and the checks behind it."""

from __future__ import annotations

import functools
import logging
from typing import Literal

import redis
from pydantic import BaseModel, ConfigDict, Field

from jobs.config.access_rules import AccessRules
from jobs.config.locations import Locations
from jobs.db import migrations
from jobs.db.database import Database
from jobs.errors import ServiceUnavailable
from jobs.queue import connect, trouble
from scheduler.admin.schema import read_revision
from scheduler.admin.version import version
from scheduler.client.local_machine import host_id
from scheduler.control.leader import has_leader

logger = logging.getLogger(__name__)

_REDIS_SECONDS = 1.0


class Schema(BaseModel):
    """The database's schema version, and the one that this release needs."""

    current: str | None
    needed: str


HealthStatus = Literal["ok", "degraded", "unavailable"]


class Health(BaseModel):
    """The health of the service."""

    model_config = ConfigDict(serialize_by_alias=True)

    status: HealthStatus = Field(
        description="`degraded`: jobs wait for Redis or a scheduler; `unavailable`: no job is accepted."
    )
    version: str
    host_id: str = Field(description="Equal to a client's own value if both see the same files.")
    input_paths: bool = Field(description="Whether inputs may be paths on the server; otherwise clients upload them.")
    database: str = Field(description="`ok`, or the problem.")
    db_schema: Schema | None = Field(
        serialization_alias="schema", description="Null while the database cannot be reached."
    )
    redis: str = Field(description="`ok`, or the problem.")
    scheduler: str = Field(description="`ok`, or the problem.")


def check_health(rules: AccessRules, database: Database) -> Health:
    """Check the database, its schema, Redis and the scheduler."""
    schema: Schema | None = None
    scheduler = "unknown while the database cannot be reached"
    try:
        schema = Schema(current=read_revision(database), needed=_needed_schema())
        database_state = (
            "ok" if schema.current == schema.needed else "its schema is not current; run `stoker db upgrade`"
        )
        if database_state == "ok":
            with database.read() as session:
                scheduler = "ok" if has_leader(session) else "no scheduler is running"
    except ServiceUnavailable as error:
        logger.warning("%s", error.message)
        database_state = "cannot be reached"  # without a key, the response says no more than this
    redis_status = redis_state(rules)
    works: HealthStatus = "ok" if redis_status == scheduler == "ok" else "degraded"
    return Health(
        status=works if database_state == "ok" else "unavailable",
        version=version(),
        host_id=host_id(),
        input_paths=bool(rules.input_roots),
        database=database_state,
        db_schema=schema,
        redis=redis_status,
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
