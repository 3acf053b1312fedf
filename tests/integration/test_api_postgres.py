"""The API over PostgreSQL, which is stricter than SQLite about texts and numbers: the whole way once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.config.settings import Settings
from jobs.db.database import Database
from tests.support.live_api import LiveApi, live_api, spec_document
from tests.support.rows import write_rows


@pytest.fixture
def api(settings: Settings, postgres_url: str) -> Iterator[LiveApi]:
    """A running API over PostgreSQL."""
    database = Database(postgres_url)
    with live_api(settings, database) as running:
        yield running
    database.close()


def test_a_job_and_its_file_go_the_whole_way(api: LiveApi, tmp_path: Path) -> None:
    file = api.client.upload(write_rows(tmp_path / "rows-ü\u4e2d.jsonl", 2))
    document = spec_document(f"file:{file['id']}", name="ü\u4e2d\U0001f600", priority="low", time_limit="10d")
    job = api.client.submit(document, idempotency_key="one")
    assert api.client.submit(document, idempotency_key="one") == job
    assert [listed["id"] for listed in api.client.jobs(state="validating")] == [job["id"]]
    assert api.client.slots() == api.client.artifacts(job["id"]) == list(api.client.iter_results(job["id"])) == []
    assert api.client.cancel(job["id"])["state"] == "cancelled"
    assert [event["name"] for event in api.client.events(job["id"])] == ["job.submitted", "job.cancelled"]
    assert api.client.wait(job["id"])["name"] == "ü\u4e2d\U0001f600"
    assert list(api.client.logs(job["id"], follow=True)) == []
    assert api.client.retry(job["id"])["retry_of"] == job["id"]
    assert "stoker_jobs" in api.http.get("/metrics").text
    assert api.client.health()["database"] == "ok"


@pytest.mark.parametrize("text", ["a\x00b", "\x00"])
def test_a_text_that_postgresql_cannot_hold_is_refused(api: LiveApi, tmp_path: Path, text: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 1)
    for document in (spec_document(rows, name=text), spec_document(rows, parameters={"a": [{"b": text}]})):
        assert api.http.post("/v1/jobs", json=document).status_code == 400
    assert list(api.client.jobs()) == []
