"""The FastAPI application: every route, every error in one shape, one OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.queue import Doorbell
from jobs.specs.array_spec import ArraySpec
from jobs.specs.inference import InferenceSpec, TrainingSpec
from jobs.specs.parameters import PARAMETERS
from scheduler.admin.version import version
from scheduler.api.context import Context
from scheduler.api.errors import add_error_handlers
from scheduler.api.routes import (
    batches,
    crons,
    events,
    files,
    health,
    job_metrics,
    jobs,
    limits,
    models,
    plan,
    prometheus,
    results,
    slots,
    webhooks,
)
from scheduler.api.routes.batches import BatchRequest
from scheduler.api.routes.crons import CronRequest
from scheduler.api.routes.webhooks import WebhookRequest
from scheduler.api.throttle import Throttle

_REFERENCE = "#/components/schemas/{model}"
_THREADS = 24  # fewer than the database pool's connections, so that no request waits for a connection


def create_app(settings: Settings, database: Database, store: Store, doorbell: Doorbell) -> FastAPI:
    """The API over one database and store.

    Args:
        settings: The settings of this process.
        database: The database, with the current schema. With another schema only `/healthz` works.
        store: The store of uploads and artifacts.
        doorbell: Wakes the scheduler after a submission or a cancel.

    Returns:
        The application. `app.state.context.looks.close()` ends its open streams before a shutdown.
    """
    throttle = Throttle(settings)
    context = Context(settings=settings, database=database, store=store, doorbell=doorbell, throttle=throttle)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        context.looks.bind()
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        yield
        await context.looks.finish()
        throttle.close()

    app = FastAPI(
        title="Stoker",
        summary="A GPU batch daemon: queue inference and training jobs, and run them on every GPU.",
        version=version(),
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    modules = (
        jobs,
        plan,
        job_metrics,
        results,
        events,
        slots,
        files,
        batches,
        webhooks,
        crons,
        models,
        limits,
        health,
        prometheus,
    )
    add_error_handlers(app, [route for module in modules for route in module.router.routes])
    for module in modules:
        app.include_router(module.router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document plus the schemas of the bodies that routes parse themselves."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schemas = document["components"]["schemas"]
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # FastAPI's default; we return 400
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for model in (InferenceSpec, TrainingSpec, ArraySpec, BatchRequest, WebhookRequest, CronRequest):
            schema = model.model_json_schema(ref_template=_REFERENCE)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        _add_parameters(schemas)
        app.openapi_schema = document
    return app.openapi_schema


def _add_parameters(schemas: dict[str, Any]) -> None:
    """Add a schema for the parameters of each task, and say in that of a spec which one belongs to which task."""
    field = schemas[InferenceSpec.__name__]["properties"]["parameters"]
    field["anyOf"] = []
    rows = []
    for task, model in PARAMETERS.items():
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = {**schema, "title": f"Parameters of {task}"}
        field["anyOf"].append({"$ref": _REFERENCE.format(model=model.__name__)})
        rows.append(f"- `{task}`: `{model.__name__}`")
    field["description"] = "\n".join(["The task's parameters. Each task has a schema of its own:", "", *rows])
