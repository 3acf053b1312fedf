"""The API follows its OpenAPI document: schemathesis sends valid and invalid requests to every route and checks each
response: no 5xx, and no status, content type or body that is not in the document."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from jobs.config.limits import ProjectLimits
from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.data.store_keys import artifact_key, upload_key
from jobs.db.database import Database
from jobs.db.states import BatchState, JobState, SlotState
from jobs.db.tables import Artifact, Batch, Cron, Event, Job, LogLine, ResultRecord, Slot, StoredFile, Webhook
from jobs.errors import StokerError
from jobs.ledger import jobs as job_ledger
from jobs.queue import Doorbell
from jobs.specs.inference import parse_spec
from scheduler.api.app import create_app
from tests.support.live_api import LiveApi, fresh_api

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
    ignored_auth,
]
"""Of schemathesis' own, not `negative_data_rejection`: query parameters that no route knows are passed over here, as
everywhere on the web. Bodies with unknown fields are refused, which the tests of each route see to."""
JOBS = {"job_completed": JobState.COMPLETED, "job_failed": JobState.FAILED, "job_cancelled": JobState.CANCELLED}
LIVE_JOB = "job_queued"
"""Used only to cancel it: nothing runs here, so its streams would not end."""
BATCHES = {
    "batch_completed": BatchState.COMPLETED,
    "batch_failed": BatchState.FAILED,
    "batch_live": BatchState.IN_PROGRESS,
    "batch_new": BatchState.VALIDATING,
}
FILES = {"file_spare": "input", "file_input": "input", "file_batch": "batch", "file_output": "batch_output"}
GROWING = "file_growing"
WEBHOOKS = ["webhook_kept", "webhook_spare"]
"""The second one is named where it is deleted only."""
CRONS = ["cron_kept", "cron_spare"]
"""The same of cron entries."""
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}
VALUES: dict[str, list[str]] = {
    "job_id": list(JOBS),
    "batch_id": list(BATCHES),
    "file_id": [*FILES, GROWING],
    "webhook_id": WEBHOOKS[:1],
    "cron_id": CRONS[:1],
    "name": ["made.bin", "minilm"],
    "after": [*JOBS, *BATCHES, *FILES, WEBHOOKS[0], CRONS[0]],
    "project": ["search"],
}
"""Parameters with values that exist; values drawn from the document alone name nothing that exists."""
SPEC = {"task": "embeddings", "model": "minilm", "input": {"path": "file:file_input"}}
BATCH = {"input_file_id": "file_batch", "endpoint": "/v1/embeddings", "completion_window": "24h"}
BODIES: dict[str, list[dict[str, Any]]] = {
    "InferenceSpec": [SPEC, {**SPEC, "name": "n", "time_limit": 60, "output": {"to": "parquet"}, "slots": {"max": 1}}],
    "ArraySpec": [{**SPEC, "name": "${value}", "array": {"values": [1, "b"]}}],
    "CronRequest": [{"name": f"n{number}", "schedule": "0 7 * * 1-5", "spec": SPEC} for number in range(5)],
    "WebhookRequest": [{"url": "https://8.8.8.8/told"}, {"url": "http://8.8.4.4:8080/", "events": ["batch.completed"]}],
    "BatchRequest": [BATCH, {**BATCH, "metadata": {"a": "b"}, "retry_of": "batch_completed"}],
}
"""Bodies that are accepted."""


LARGE = 100


def document() -> dict[str, Any]:
    """What `/openapi.json` answers, the values that there are among those that it allows."""
    with tempfile.TemporaryDirectory() as folder:
        made = Settings(data_dir=Path(folder))
        database, doorbell = Database(made.resolved_database_url), Doorbell(made)
        found = create_app(made, database, Store(made.resolved_store_url), doorbell).openapi()
        doorbell.close()
        database.close()
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                values = VALUES.get(parameter["name"], [])
                values = WEBHOOKS[1:] if (parameter["name"], method) == ("webhook_id", "delete") else values
                values = CRONS[1:] if (parameter["name"], method) == ("cron_id", "delete") else values
                values = [LIVE_JOB, *values] if path == "/v1/jobs/{job_id}/cancel" else values
                if values:
                    parameter["schema"] = {"anyOf": [{"enum": values}, parameter["schema"]]}
    schemas = found["components"]["schemas"]
    for name, bodies in BODIES.items():
        schemas[name] = {"anyOf": [{"enum": bodies}, schemas[name]]}
    trimmed: dict[str, Any] = without_large_bounds(found)
    return trimmed


def without_large_bounds(node: Any) -> Any:
    """The document without large bounds, up to which schemathesis would draw values; `test_api_bounds` tests them."""
    if isinstance(node, list):
        return [without_large_bounds(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    return {
        name: without_large_bounds(inner)
        for name, inner in node.items()
        if name not in ("maxLength", "maxItems", "maxProperties") or inner <= LARGE
    }


CONFIG = SchemathesisConfig.from_dict(
    {"generation": {"deterministic": True, "max-examples": 20, "database": "none"}, "seed": 1}
)
"""Twenty drawn examples of each operation, besides those that follow from the schema; the same at every run."""
schema = schemathesis.openapi.from_dict(document(), config=CONFIG)


@pytest.fixture(scope="module", autouse=True)
def _the_same_examples_everywhere() -> Iterator[None]:
    """Hypothesis also draws from the constants in our loaded modules, even when derandomized, so that the requests
    would depend on the tests that ran before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "_get_local_constants", Constants)
        providers.CONSTANTS_CACHE.cache.clear()
        yield
    providers.CONSTANTS_CACHE.cache.clear()


@dataclass(frozen=True)
class ObservedApi:
    """A running API, and the statuses that each operation was answered with."""

    url: str
    key: str
    database: Database
    seen: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObservedApi]:
    """A running API that has one of everything."""
    changed = {"models": {"minilm": {"model": "org/model"}}, "projects": {"search": ProjectLimits(queued_rows=1)}}
    with fresh_api(tmp_path_factory.mktemp("schema"), **changed) as running:
        furnish(running)
        observed = ObservedApi(running.url, running.key, running.database)
        yield observed
    for operation, statuses in observed.seen.items():
        assert any(status < 300 for status in statuses), f"{operation} was never answered well, so little was looked at"


def furnish(api: LiveApi) -> None:
    """Put one of everything into the database and the store."""
    spec = {"task": "embeddings", "model": "org/model", "input": {"path": "file:file_input"}}
    contents = {"file_batch": json.dumps(LINE).encode(), "file_output": b"{}\n"}
    request = {"endpoint": "/v1/embeddings", "input_file_id": "file_batch", "completion_window": "24h", "digest": "d"}
    times = {"created_at": 1.0, "expires_at": 2e9}
    made: list[Any] = [
        Slot(id="s0", host="h", device="cpu", name="CPU", state=SlotState.OFFLINE, registered_at=1.0, heartbeat_at=1.0)
    ]
    made += [Webhook(id=one, url="https://8.8.8.8/told", secret="whsec_c2VjcmV0", created_at=1.0) for one in WEBHOOKS]
    every_hour = {"schedule": "0 * * * *", "timezone": "UTC", "spec": spec, "next_at": 2e9, "created_at": 1.0}
    made += [Cron(id=one, name=one, project="default", **every_hour) for one in CRONS]
    for file_id, purpose in FILES.items():
        stored = api.store.put(upload_key(file_id), [contents.get(file_id, b'{"text": "a"}\n')])
        kept = {"key": stored.key, "num_bytes": stored.num_bytes, "sha256": stored.sha256, **times}
        made.append(StoredFile(id=file_id, filename="f.jsonl", purpose=purpose, **kept))
    for job_id, state in {**JOBS, LIVE_JOB: JobState.QUEUED}.items():
        plain = parse_spec(spec).model_dump(mode="json")
        made.append(
            Job(
                id=job_id, kind="inference", state=state, spec=plain, num_rows=2, own_done=2, own_failed=1,
                created_at=1.0, started_at=2.0, ended_at=3.0, error_code="x" if state == JobState.FAILED else None,
            )
        )  # fmt: skip
        stored = api.store.put(artifact_key(job_id, "made.bin"), [b"bytes"])
        kept = {"key": stored.key, "num_bytes": stored.num_bytes, "sha256": stored.sha256, "created_at": 1.0}
        made += [
            Artifact(job_id=job_id, name="made.bin", **kept),
            Event(job_id=job_id, at=1.0, name="job.submitted", data={"kind": "inference"}),
            LogLine(job_id=job_id, lease_id="l", slot_id="s0", attempt=1, at=1.0, line="a line"),
            ResultRecord(job_id=job_id, row_index=0, key="a", vector=bytes(8)),
            ResultRecord(job_id=job_id, row_index=1, key="b", error='{"code": "x", "message": "y"}'),
        ]
    for batch_id, state in BATCHES.items():
        output = GROWING if state == BatchState.IN_PROGRESS else "file_output"
        wrong = [{"code": "x", "message": "y", "line": 1, "param": None}] if state == BatchState.FAILED else None
        made.append(
            Batch(
                id=batch_id, state=state, num_lines=1, output_file_id=output, errors=wrong, in_progress_at=1.0,
                num_completed=1 if state.is_terminal else None, num_failed=0 if state.is_terminal else None,
                **request, **times,
            )
        )  # fmt: skip
    with api.database.write() as session:
        for one in made:
            session.add(one)
            session.flush()


@schema.parametrize()
def test_every_answer_is_in_the_document(api: ObservedApi, case: Case) -> None:
    response = case.call(base_url=api.url, headers={"Authorization": f"Bearer {api.key}"})
    if case.path in ("/v1/jobs", "/v1/jobs/{job_id}/retry") and response.status_code == 201:
        # Ended, so that its streams end.
        job_ledger.fail(api.database, response.json()["id"], StokerError("nothing runs here"))
    api.seen[case.operation.label].add(response.status_code)
    case.validate_response(response, checks=CHECKS)
