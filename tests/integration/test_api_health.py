"""Health, Prometheus metrics and keys over HTTP, for load balancers, scrapers and operators."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jobs.config.settings import Settings
from jobs.db.database import Database
from scheduler.admin.keys import create_key, revoke_key
from scheduler.api.access.auth import is_loopback
from scheduler.client.http_client import ApiError, StokerClient
from scheduler.client.local_machine import host_id
from scheduler.control.leader import Leader
from tests.conftest import RedisServer, wait_until
from tests.support.leased_job import LeasedJob
from tests.support.live_api import LiveApi, fresh_api, live_api


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """One running API for tests that change nothing."""
    with fresh_api(tmp_path_factory.mktemp("health")) as running:
        yield running


def test_health_needs_no_key_and_names_what_is_missing(api: LiveApi) -> None:
    answer = httpx.get(f"{api.url}/healthz", timeout=300, trust_env=False)
    assert answer.status_code == 200
    health = answer.json()
    assert set(health) == {
        "status", "version", "host_id", "input_paths", "database", "schema", "redis", "scheduler",
    }  # fmt: skip
    assert health["status"] == "degraded"
    assert health["database"] == "ok"
    assert health["redis"].startswith("cannot be reached")
    assert health["scheduler"] == "no scheduler is running"
    assert health["schema"]["current"] == health["schema"]["needed"]


def test_health_is_ok_with_redis_and_a_leader(
    settings: Settings, sqlite_database: Database, redis_server: RedisServer
) -> None:
    leader = Leader(sqlite_database, leader_seconds=600)
    leader.acquire()
    with live_api(settings.model_copy(update={"redis_url": redis_server.url}), sqlite_database) as api:
        assert api.client.health()["status"] == "ok"
        with redis_server.refusing_writes():
            health = api.client.health()
            assert health["status"] == "degraded"
            assert health["redis"].startswith("refuses to write: ")
    leader.resign()


def test_health_is_503_where_the_database_is_away_or_old(api: LiveApi, tmp_path: Path) -> None:
    with api.database.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    answer = api.http.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert "stoker db upgrade" in answer.json()["database"]
    assert api.client.health()["status"] == "unavailable"
    api.database.close()
    shutil.move(tmp_path / "test.db", tmp_path / "away.db")
    (tmp_path / "test.db").mkdir()
    answer = api.http.get("/healthz")
    assert (answer.status_code, answer.json()["schema"]) == (503, None)
    refused = api.http.get("/v1/jobs")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
    assert refused.headers["retry-after"] == "1"


def test_a_client_knows_whether_it_shares_files_with_the_api(
    api: LiveApi, settings: Settings, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.client.shares_files()
    with live_api(settings.model_copy(update={"input_roots": []}), sqlite_database) as closed:
        assert not closed.client.shares_files()
    monkeypatch.setattr("scheduler.client.http_client.host_id", lambda: "another")
    assert not api.client.shares_files()
    assert host_id() == host_id()


def test_a_revoked_key_opens_nothing(api: LiveApi) -> None:
    key = create_key(api.database, "guest", project="theirs")
    with StokerClient(api.url, key.secret, retry_seconds=0) as client:
        assert list(client.jobs()) == []
        revoke_key(api.database, key.id)
        with pytest.raises(ApiError) as refused:
            wait_until(lambda: list(client.jobs()) != [], "the key opens nothing any more")
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
    with StokerClient(api.url, retry_seconds=0) as client, pytest.raises(ApiError) as missing:
        list(client.jobs())
    assert missing.value.status == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (method, path)
        for path, methods in {
            "/v1/jobs": "GET POST", "/v1/jobs/x": "GET", "/v1/jobs/x/cancel": "POST", "/v1/jobs/x/retry": "POST",
            "/v1/jobs/x/results": "GET", "/v1/jobs/x/events": "GET", "/v1/jobs/x/logs": "GET",
            "/v1/jobs/x/metrics": "GET", "/v1/jobs/x/artifacts": "GET", "/v1/jobs/x/artifacts/y": "GET",
            "/v1/slots": "GET", "/v1/files": "GET POST", "/v1/files/x": "GET DELETE", "/v1/files/x/content": "GET",
        }.items()
        for method in methods.split()
    ],
)  # fmt: skip
def test_every_route_under_v1_needs_a_key(shared: LiveApi, method: str, path: str) -> None:
    assert httpx.request(method, shared.url + path, timeout=300, trust_env=False).status_code == 401


def test_prometheus_reads_the_metrics(api: LiveApi, tmp_path: Path) -> None:
    LeasedJob(api.database, api.settings, tmp_path, [{"id": "a", "text": "a"}])
    text = httpx.get(f"{api.url}/metrics", timeout=300, trust_env=False).text
    assert 'stoker_jobs{state="queued"} 1.0' in text
    assert 'stoker_slots{state="online"} 0.0' in text
    assert "stoker_rows_waiting 1.0" in text
    for name in "info slots_busy leased_chunks rows tokens oldest_wait_seconds".split():
        assert f"# TYPE stoker_{name} gauge" in text


def test_metrics_need_a_key_where_others_can_reach_them(api: LiveApi, sqlite_database: Database) -> None:
    exposed = api.settings.model_copy(update={"host": "0.0.0.0"})
    with live_api(exposed, sqlite_database) as running:
        assert httpx.get(f"{running.url}/metrics", timeout=300, trust_env=False).status_code == 401
        assert running.http.get("/metrics").status_code == 200


def test_only_this_machines_own_addresses_are_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""))
