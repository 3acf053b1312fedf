"""The routes are frozen: a change of this list is a change of what users' programs call, and needs a changelog line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.queue import Doorbell
from jobs.specs.parameters import PARAMETERS as TASK_PARAMETERS
from scheduler.api.app import create_app
from tests.support.reference import section

ROUTES = {
    "GET /healthz",
    "GET /metrics",
    "GET /v1/batches",
    "POST /v1/batches",
    "GET /v1/batches/{batch_id}",
    "POST /v1/batches/{batch_id}/cancel",
    "GET /v1/crons",
    "POST /v1/crons",
    "GET /v1/crons/{cron_id}",
    "DELETE /v1/crons/{cron_id}",
    "GET /v1/files",
    "POST /v1/files",
    "GET /v1/files/{file_id}",
    "DELETE /v1/files/{file_id}",
    "GET /v1/files/{file_id}/content",
    "GET /v1/jobs",
    "POST /v1/jobs",
    "GET /v1/jobs/{job_id}",
    "GET /v1/jobs/{job_id}/artifacts",
    "GET /v1/jobs/{job_id}/artifacts/{name}",
    "GET /v1/jobs/{job_id}/attempts",
    "POST /v1/jobs/{job_id}/cancel",
    "GET /v1/jobs/{job_id}/events",
    "GET /v1/jobs/{job_id}/logs",
    "GET /v1/jobs/{job_id}/metrics",
    "GET /v1/jobs/{job_id}/results",
    "POST /v1/jobs/{job_id}/retry",
    "GET /v1/limits",
    "GET /v1/limits/shares",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "POST /v1/plan",
    "GET /v1/slots",
    "GET /v1/webhooks",
    "POST /v1/webhooks",
    "GET /v1/webhooks/{webhook_id}",
    "DELETE /v1/webhooks/{webhook_id}",
    "GET /v1/webhooks/{webhook_id}/deliveries",
    "POST /v1/webhooks/{webhook_id}/test",
}
PARAMETERS = {
    "GET /v1/batches": {"after", "limit"},
    "POST /v1/batches": {"idempotency-key"},
    "GET /v1/crons": {"after", "limit"},
    "GET /v1/files": {"after", "limit", "order", "purpose"},
    "GET /v1/jobs": {"after", "limit", "parent", "state"},
    "GET /v1/limits": {"project"},
    "POST /v1/jobs": {"idempotency-key"},
    "GET /v1/jobs/{job_id}/events": {"after", "follow", "last-event-id", "limit", "progress"},
    "GET /v1/jobs/{job_id}/logs": {"after", "follow", "last-event-id", "limit"},
    "GET /v1/jobs/{job_id}/metrics": {"after_step", "limit", "name"},
    "GET /v1/jobs/{job_id}/results": {"after_row", "format", "limit"},
    "GET /v1/webhooks": {"after", "limit"},
    "GET /v1/webhooks/{webhook_id}/deliveries": {"after", "limit"},
}
"""Query and header parameters, where a route has any."""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The OpenAPI document."""
    folder: Path = tmp_path_factory.mktemp("surface")
    settings = Settings(data_dir=folder)
    database = Database(settings.resolved_database_url)
    doorbell = Doorbell(settings)
    yield create_app(settings, database, Store(settings.resolved_store_url), doorbell).openapi()
    doorbell.close()
    database.close()


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every operation by its method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_the_routes_are_these(document: dict[str, Any]) -> None:
    assert set(operations(document)) == ROUTES


def test_the_parameters_are_these(document: dict[str, Any]) -> None:
    found = {
        name: {parameter["name"].lower() for parameter in operation.get("parameters", []) if parameter["in"] != "path"}
        for name, operation in operations(document).items()
    }
    assert {name: parameters for name, parameters in found.items() if parameters} == PARAMETERS


def test_every_route_is_described_with_its_answer_and_its_errors(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        assert operation["description"], name
        answers = operation["responses"]
        good = next(answer for status, answer in answers.items() if status.startswith("2"))
        assert good["content"], name
        for kind, content in good["content"].items():
            if kind == "application/json":
                assert content["schema"], name
        if "/v1/" in name:
            errors = {status: answer for status, answer in answers.items() if status[0] in "45"}
            assert set(errors) >= {"401", "429", "500", "503"}, name
            for error in errors.values():
                schema = error["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}, name
            assert operation["security"], name
        assert all(status.isdecimal() for status in answers), "4XX and default would hide what was not thought of"
        assert "422" not in answers, name


def test_every_reference_in_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for inner in node.values():
                yield from references(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from references(inner)

    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference


def test_the_spec_is_described_with_its_fields(document: dict[str, Any]) -> None:
    body = operations(document)["POST /v1/jobs"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/yaml"}
    assert {"task", "model", "input", "output", "parameters"} <= set(
        document["components"]["schemas"]["InferenceSpec"]["properties"]
    )


def test_the_document_has_the_parameters_of_each_task(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    field = schemas["InferenceSpec"]["properties"]["parameters"]
    for task, model in TASK_PARAMETERS.items():
        assert {"$ref": f"#/components/schemas/{model.__name__}"} in field["anyOf"]
        assert f"`{task}`: `{model.__name__}`" in field["description"]
        properties = schemas[model.__name__]["properties"] if model.model_fields else {}
        assert list(properties) == list(model.model_fields)
        assert all(one["description"] for one in properties.values())
    assert schemas["FillMaskParameters"]["properties"]["top_k"]["default"] == 5


def test_the_reference_has_each_route() -> None:
    documented = {line.split("`")[1] for line in section("HTTP").splitlines() if line.startswith("| `")}
    assert documented == ROUTES
