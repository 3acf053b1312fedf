"""The serving process as in production: it starts, prints its address, ends in order, and reports errors clearly."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from jobs.config.settings import Settings
from jobs.db import migrations
from jobs.db.database import Database
from tests.conftest import wait_until
from tests.support.live_api import spec_document
from tests.support.rows import write_rows
from tests.support.serve_process import client_of, environment, serving


def test_it_serves_leads_and_ends_in_order_while_a_stream_is_open(served: Settings, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with serving(served, log) as child, client_of(served) as client:
        wait_until(lambda: client.health()["status"] == "ok", "the scheduler leads")
        job = client.submit(spec_document(write_rows(tmp_path / "rows.jsonl", 5)))
        wait_until(lambda: client.job(job["id"])["state"] == "queued", "the job is planned")
        assert client.job(job["id"])["counts"]["total"] == 5
        headers = {"Authorization": f"Bearer {served.local_key_path.read_text().strip()}"}
        url = f"{client.url}/v1/jobs/{job['id']}/events"
        with httpx.stream("GET", url, headers=headers, timeout=300, trust_env=False) as stream:
            blocks = stream.iter_raw()
            next(blocks)
            child.send_signal(signal.SIGTERM)
            rest = b"".join(blocks)  # the stream ends by itself, without an event of the job's end
        assert b"event: end" not in rest
        wait_until(lambda: child.poll() is not None, "the process ends")
        assert child.returncode == 0, log.read_text()
    assert not served.url_path.exists()
    assert "Traceback" not in log.read_text()


def test_a_stuck_upload_does_not_hold_up_the_end(served: Settings, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with serving(served, log) as child, client_of(served) as client:
        host, _, port = client.url.removeprefix("http://").partition(":")
        key = served.local_key_path.read_text().strip()
        head = (
            f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 2000000\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            '--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        )
        store = Path(served.resolved_store_url)
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + b"x")
            wait_until(lambda: any(path.is_file() for path in store.rglob("*")), "the upload is being written")
            child.send_signal(signal.SIGTERM)
            wait_until(lambda: child.poll() is not None, "the process ends")
    assert child.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    assert not [path for path in store.rglob("*") if path.is_file()]


def test_a_client_waits_over_a_kill_and_a_restart(served: Settings, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with serving(served, log) as child, client_of(served) as client:
        job = client.submit(spec_document(write_rows(tmp_path / "rows.jsonl", 5)))
        jobs = client.watch(job["id"])
        next(jobs)
        child.kill()
        child.wait()
        port = int(served.url_path.read_text().strip().rpartition(":")[2])
        served.url_path.unlink()
        with serving(served.model_copy(update={"port": port}), log):
            client.cancel(job["id"])
            states = [seen["state"] for seen in jobs]
        assert states[-1] == "cancelled"


@pytest.mark.parametrize("case", ["empty", "old", "away"])
def test_an_unusable_database_is_reported_in_one_sentence(served: Settings, tmp_path: Path, case: str) -> None:
    url = "postgresql://nobody@127.0.0.1:1/none" if case == "away" else f"sqlite:///{tmp_path / 'other.db'}"
    if case == "old":
        database = Database(url)
        migrations.upgrade(database)
        with database.write() as session:
            session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
        database.close()
    ended = run_to_the_end(environment(served, STOKER_DATABASE_URL=url))
    assert ended.returncode == (1 if case == "away" else 2)
    sentence = {"empty": "stoker db upgrade", "old": "stoker db upgrade", "away": "the database cannot be used"}[case]
    assert sentence in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert not served.url_path.exists()


def test_a_port_in_use_is_reported_in_one_sentence(served: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run_to_the_end(environment(served, STOKER_PORT=str(taken.getsockname()[1])))
    assert ended.returncode == 2
    assert "choose another port with --port" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_setting_that_is_wrong_is_named(served: Settings) -> None:
    ended = run_to_the_end(environment(served, STOKER_LEASE_SECONDS="-1"))
    assert ended.returncode == 2
    assert "lease_seconds" in ended.stderr.splitlines()[-1]


def run_to_the_end(env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The process, where it must end by itself."""
    argv = [sys.executable, "-m", "scheduler.api.serve"]
    return subprocess.run(argv, env=dict(env), capture_output=True, text=True, timeout=300, check=False)
