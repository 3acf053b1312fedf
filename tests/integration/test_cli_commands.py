"""The commands against a real API: their output for people and for programs, and their exit codes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from jobs.config.activities import Activity
from jobs.config.settings import Settings
from jobs.data.rows import Result, RowError
from jobs.db.database import Database
from jobs.db.tables import Job
from jobs.ledger import chunks, logs, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leasing import leases
from jobs.ledger.records import webhooks
from jobs.ledger.timing.stage_times import ADVICE, StageTimes
from scheduler.cli import main
from tests.conftest import wait_until
from tests.support.leased_job import LeasedJob
from tests.support.live_api import LiveApi, live_api, spec_document
from tests.support.rows import write_rows


@pytest.fixture
def api(settings: Settings, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveApi]:
    """A running API that the commands find through the environment."""
    handlers = logging.getLogger().handlers[:]
    with live_api(settings, sqlite_database) as running:
        monkeypatch.setenv("STOKER_URL", running.url)
        monkeypatch.setenv("STOKER_API_KEY", running.key)
        monkeypatch.setenv("STOKER_DATA_DIR", str(settings.data_dir))
        monkeypatch.setenv("STOKER_DATABASE_URL", settings.database_url)
        yield running
    logging.getLogger().handlers[:] = handlers


@pytest.fixture
def stoker(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must end with a code; gives its stdout and stderr."""

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        capfd.readouterr()
        got = main(arguments)
        shown = capfd.readouterr()
        assert got == code, shown
        assert "Traceback" not in shown.err
        assert "\x1b" not in shown.out + shown.err
        return shown.out, shown.err

    return run


def one_sentence(err: str) -> str:
    """The single line of an error."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


def recorded_job(api: LiveApi, folder: Path, times: StageTimes | None = None) -> LeasedJob:
    """A job of 8 rows, all recorded, row 2 as a row error; its merge is still to come."""
    records = [{"id": f"r{row}", "text": f"text {row}"} for row in range(8)]
    job = LeasedJob(api.database, api.settings, folder, records, chunk_rows=8)
    lease = job.lease()
    claim = chunks.claim(api.database, lease.lease_id, limit=1)[0]
    results = [
        Result(row, f"r{row}", error=RowError("null_value", "the text is null", 3))
        if row == 2
        else Result(row, f"r{row}", [{"label": "ä", "score": row / 8}], num_tokens=3)
        for row in range(8)
    ]
    chunk = ChunkResults(claim.start_row, claim.stop_row, results, None)
    sink = job.sink()
    chunks.commit(
        api.database, lease.lease_id, [chunk], lambda session: sink.record(session, job.job_id, results), times
    )
    lines = [(1_700_000_000.0, "model \x1b[31mloaded"), (1_700_000_001.0, "done")]
    logs.append(api.database, lease, lines, max_lines=100)
    leases.release(api.database, lease.lease_id, "no chunk is left")
    return job


def completed_job(api: LiveApi, folder: Path) -> str:
    """The same job after its end."""
    job = recorded_job(api, folder)
    job_ledger.complete(api.database, job.job_id, [])
    return job.job_id


def test_submit_prints_the_id_alone_and_status_is_the_apis_job(api: LiveApi, tmp_path: Path, stoker: Any) -> None:
    """`JOB=$(stoker submit ...)` and `stoker status $JOB --json | jq` are used in scripts."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        json.dumps(spec_document(write_rows(tmp_path / "rows.jsonl", 3), name="nightly" + " and more" * 12))
    )
    out, _ = stoker("submit", str(spec))
    job_id = out.strip()
    assert out == f"{job_id}\n"
    out, _ = stoker("status", job_id, "--json")
    assert json.loads(out) == api.client.job(job_id)
    assert json.loads(out)["spec"]["input"]["path"] == str(tmp_path / "rows.jsonl")
    out, _ = stoker("status", job_id)
    assert "nightly" in out
    assert "validating" in out
    out, _ = stoker("status")
    assert job_id in out
    assert "validating  nightly" in out  # a long name gives way to the other columns
    assert "0/0" in out
    assert max(map(len, out.splitlines())) <= 80
    out, _ = stoker("status", "--json")
    assert [job["id"] for job in json.loads(out)["data"]] == [job_id]


def test_status_names_the_stage_that_limits_a_job_and_what_to_change(api: LiveApi, tmp_path: Path, stoker: Any) -> None:
    times = StageTimes(
        read=1.0, encode=8.0, wait=6.0, forward=4.0, decode=0.5, commit=0.25, num_tokens=75, num_padded_tokens=100
    )
    job_id = recorded_job(api, tmp_path, times).job_id
    found = api.client.job(job_id)["stages"]
    assert found == {
        "seconds": {"read": 1.0, "encode": 8.0, "wait": 6.0, "forward": 4.0, "decode": 0.5, "commit": 0.25},
        "device_busy": 0.4,
        "padding": 0.25,
        "limited_by": "encode",
        "advice": ADVICE[Activity.ENCODE],
    }
    out, _ = stoker("status", job_id)
    shown = " ".join(out.split())
    assert "busy 40% of the time, 25% padding; limited by encode" in shown
    assert "raise the setting encode_threads" in shown


def test_results_are_lines_for_programs_and_files_for_people(api: LiveApi, tmp_path: Path, stoker: Any) -> None:
    """Rows that are missing, doubled or out of order here would be lost to the user."""
    job_id = completed_job(api, tmp_path)
    out, _ = stoker("results", job_id)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["row_index"] for line in lines] == list(range(8))
    assert lines[0] == {"row_index": 0, "key": "r0", "output": [{"label": "ä", "score": 0.0}], "error": None}
    assert lines[2]["error"]["code"] == "null_value"
    out, _ = stoker("results", job_id, "--limit", "3")
    assert len(out.splitlines()) == 3
    target = tmp_path / "out.jsonl"
    out, err = stoker("results", job_id, "--output", str(target))
    assert out == ""
    assert str(target) in err
    assert [json.loads(line) for line in target.read_text().splitlines()] == lines
    for ending in ("csv", "parquet"):
        stoker("results", job_id, "--output", str(tmp_path / f"out.{ending}"))
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out.csv", "out.jsonl", "out.parquet"]


def test_logs_show_attempt_and_slot_without_escape_codes(api: LiveApi, tmp_path: Path, stoker: Any) -> None:
    """A model's own output must be found by where it came from, and do no harm."""
    job_id = completed_job(api, tmp_path)
    out, _ = stoker("logs", job_id)
    assert [line.split(" | ")[1] for line in out.splitlines()] == ["model �[31mloaded", "done"]
    assert "attempt 1 " in out
    out, _ = stoker("logs", job_id, "--json")
    assert json.loads(out.splitlines()[0])["line"] == "model \x1b[31mloaded"
    stoker("logs", "-f", job_id)  # ends, since the job has


def test_watch_ends_by_the_jobs_end(api: LiveApi, tmp_path: Path, stoker: Any) -> None:
    """`stoker watch && next-step` must not go on after a failure."""
    job_id = completed_job(api, tmp_path)
    out, err = stoker("watch", job_id)
    assert out == ""
    assert "completed: 8 rows" in err
    assert "1 with a row error" in err
    out, _ = stoker("watch", job_id, "--json")
    assert json.loads(out.splitlines()[-1])["state"] == "completed"
    with api.database.write() as session:
        broken = {"state": "failed", "error_code": "invalid_model", "error_message": "'x' is not a model"}
        session.execute(update(Job).where(col(Job.id) == job_id).values(**broken))
    _, err = stoker("watch", job_id, code=1)
    assert err.splitlines()[-1] == "error: 'x' is not a model"
    stoker("watch", job_id, "--json", code=1)


def test_cancel_and_retry(api: LiveApi, tmp_path: Path, stoker: Any) -> None:
    """The two ways in which a user changes a job's life."""
    job_id = str(api.client.submit(spec_document(write_rows(tmp_path / "rows.jsonl", 3)))["id"])
    _, err = stoker("cancel", job_id)
    assert f"{job_id} cancelled" in err
    _, err = stoker("cancel", job_id, code=2)
    assert job_id in one_sentence(err)
    out, _ = stoker("retry", job_id)
    new_id = out.strip()
    assert api.client.job(new_id)["retry_of"] == job_id
    out, _ = stoker("cancel", new_id, "--json", "--wait")
    assert json.loads(out)["state"] == "cancelled"


def test_artifacts_are_listed_and_fetched_whole(api: LiveApi, tmp_path: Path, stoker: Any) -> None:
    """A damaged or strayed file must not pass for the job's output."""
    job = recorded_job(api, tmp_path)
    key = f"jobs/{job.job_id}/artifacts/merged/out.bin"
    stored = api.store.put(key, [b"12", b"34"])
    from jobs.db.tables import Artifact

    artifact = Artifact(
        job_id=job.job_id,
        name="merged/out.bin",
        key=key,
        num_bytes=stored.num_bytes,
        sha256=stored.sha256,
        created_at=1.0,
    )
    job_ledger.complete(api.database, job.job_id, [artifact])
    out, _ = stoker("artifacts", job.job_id)
    assert "merged/out.bin" in out
    out, _ = stoker("artifacts", job.job_id, "--json")
    assert json.loads(out)[0]["sha256"] == hashlib.sha256(b"1234").hexdigest()
    _, err = stoker("artifacts", job.job_id, "--output", str(tmp_path / "got"))
    assert "merged/out.bin (4 B)" in err
    assert "1 artifact written to" in err
    assert (tmp_path / "got" / "merged" / "out.bin").read_bytes() == b"1234"
    api.store.put(key, [b"12", b"35"])
    _, err = stoker("artifacts", job.job_id, "--output", str(tmp_path / "bad"), code=1)
    assert "was damaged" in err
    assert not list((tmp_path / "bad").rglob("*.bin"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "job_none"], "job_none"),
        (["watch", "job_none"], "job_none"),
        (["logs", "job_none"], "job_none"),
        (["results", "job_none"], "job_none"),
        (["artifacts", "job_none"], "job_none"),
        (["cancel", "job_none"], "job_none"),
        (["retry", "job_none"], "job_none"),
        (["submit", "none.yaml"], "no spec file"),
        (["results", "job_none", "--output", "x.doc"], "must end in"),
        (["run", "embedings", "--model", "m", "--input", "x.jsonl"], "did you mean 'embeddings'"),
        (["run", "fill-mask", "--model", "m", "--input", "none.jsonl"], "none.jsonl"),
        (
            ["run", "fill-mask", "--model", "m", "--input", "x.jsonl", "--output", "/none/x.csv"],
            "is not an existing folder",
        ),
        (["run", "fill-mask", "--model", "m", "--input", "*.jsonl", "--output", "x.jsonl"], "is an input of this job"),
        (["run", "fill-mask", "--model", "m", "--input", "x.jsonl", "--column", "text"], "NAME=VALUE"),
        (["run", "fill-mask", "--model", "m", "--input", "x.jsonl", "--slots", "0"], "--slots"),
        (["run", "fill-mask", "--model", "m", "--input", "x.jsonl", "--priority", "urgent"], "'urgent' is not one of"),
        (["--data-dir", "", "status"], "must not be empty"),
        (["run", "fill-mask", "--model", "m"], "--input"),
        (["run", "--model", "m", "--input", "x.jsonl"], "TASK"),
        (["nonsense"], "nonsense"),
        (["status", "--nonsense"], "--nonsense"),
        (["keys", "revoke", "key_none"], "key_none"),
    ],
)
def test_bad_requests_are_one_sentence_and_exit_code_2(
    api: LiveApi, stoker: Any, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback tells a user nothing, and a wrong exit code misleads a script."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    out, err = stoker(*arguments, code=2)
    assert words in one_sentence(err)
    assert out == ""


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STOKER_PORT", "many", "setting port: must be a whole number"),
        ("STOKER_PORT", "99999", "setting port: must be at most 65535"),
        ("STOKER_DATA_DIR", "", "setting data_dir: must not be empty"),
        ("STOKER_INPUT_ROOTS", "[", "cannot read the settings"),
        ("STOKER_URL", "http://127.0.0.1:1", "no Stoker API responds at http://127.0.0.1:1"),
        ("STOKER_API_KEY", "wrong", "API key"),
    ],
)
def test_wrong_settings_are_named(
    api: LiveApi, stoker: Any, name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user must learn which setting to correct."""
    monkeypatch.setenv(name, value)
    _, err = stoker("status", code=1 if name == "STOKER_URL" else 2)
    assert words in one_sentence(err)


def test_a_remote_api_gets_the_file_itself(
    api: LiveApi, tmp_path: Path, stoker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `stoker submit` against another machine would name a file that is not there."""
    monkeypatch.setattr("scheduler.client.http_client.host_id", lambda: "another machine")
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", 3)
    (tmp_path / "spec.json").write_text(json.dumps(spec_document("rows.jsonl")))
    out, _ = stoker("submit", "spec.json")
    sent = api.client.job(out.strip())["spec"]["input"]
    assert sent["format"] == "jsonl"
    file_id = sent["path"].removeprefix("file:")
    api.client.download_file(file_id, tmp_path / "back.jsonl")
    assert (tmp_path / "back.jsonl").read_bytes() == (tmp_path / "rows.jsonl").read_bytes()


def test_keys_are_made_listed_and_revoked(api: LiveApi, stoker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator must be able to let a user in, and out."""
    out, _ = stoker("keys", "create", "ada")
    secret = out.strip()
    monkeypatch.setenv("STOKER_API_KEY", secret)
    stoker("status")
    out, _ = stoker("keys", "list", "--json")
    made = next(key for key in json.loads(out) if key["name"] == "ada")
    assert secret not in out
    stoker("keys", "revoke", made["id"])
    wait_until(lambda: main(["status"]) == 2, "the key opens nothing any more")
    out, _ = stoker("keys", "list")
    assert "revoked" in out


def test_the_schema_is_brought_up_to_date(tmp_path: Path, stoker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stoker serve` on a new server refuses to start until the database is migrated."""
    monkeypatch.setenv("STOKER_DATA_DIR", str(tmp_path / "data"))
    out, err = stoker("db", "current", code=1)
    assert out == "none\n"
    assert "stoker db upgrade" in err
    _, err = stoker("serve", code=2)
    assert "stoker db upgrade" in one_sentence(err)
    _, err = stoker("keys", "list", code=2)
    assert "stoker db upgrade" in one_sentence(err)
    assert not (tmp_path / "data").exists()
    out, _ = stoker("db", "upgrade")
    assert stoker("db", "current")[0] == out


def test_slots_that_are_none(api: LiveApi, stoker: Any) -> None:
    """An empty table would leave a newcomer puzzled."""
    out, err = stoker("slots")
    assert out == ""
    assert "stoker up" in err
    assert json.loads(stoker("slots", "--json")[0]) == []
    assert "default" in stoker("slots", "--by", "project")[0]
    [share] = json.loads(stoker("slots", "--by", "project", "--json")[0])
    assert (share["project"], share["weight"], share["slots_held"]) == ("default", 1.0, 0)


def test_slots_show_memory_device_and_labels(api: LiveApi, stoker: Any) -> None:
    """A user who writes `needs` must see what there is to ask for."""
    large = slots.SlotInfo("s0", "h", "cuda", "GPU-1", "H200", 150 * 10**9, 4, [], ["h200", "nvlink"])
    slots.register(api.database, [large, slots.SlotInfo("s1", "h", "cpu", None, "EPYC", 8 * 10**9, 4)])
    out, _ = stoker("slots")
    assert "150 GB" in out
    assert "h200, nvlink" in " ".join(out.split())
    assert "cuda H200" in out
    assert "cpu EPYC" in out
    shown = json.loads(stoker("slots", "--json")[0])
    assert [(slot["device"], slot["memory_bytes"], slot["labels"]) for slot in shown] == [
        ("cuda", 150 * 10**9, ["h200", "nvlink"]),
        ("cpu", 8 * 10**9, []),
    ]


def test_webhooks_are_made_tried_out_and_deleted(api: LiveApi, stoker: Any) -> None:
    """`SECRET=$(stoker webhooks create URL)` gives the secret to a receiver."""
    out, err = stoker("webhooks", "list")
    assert (out, err) == ("", "no webhooks yet\n")
    out, err = stoker(
        "webhooks", "create", "https://1.1.1.1/hook", "--event", "batch.completed", "--event", "job.failed"
    )
    assert out.startswith("whsec_")
    webhook_id = err.split()[0]
    made = json.loads(stoker("webhooks", "create", "https://1.1.1.2/" + "x" * 100, "--json")[0])
    assert made["secret"].startswith("whsec_")
    listed = json.loads(stoker("webhooks", "list", "--json")[0])
    assert [(webhook["id"], webhook["events"]) for webhook in listed] == [
        (made["id"], []),
        (webhook_id, ["batch.completed", "job.failed"]),
    ]
    out, _ = stoker("webhooks", "list")
    assert webhook_id in out
    assert "batch.completed" in out
    assert max(map(len, out.splitlines())) <= 80
    assert stoker("webhooks", "log", webhook_id) == ("", "no deliveries yet\n")
    assert json.loads(stoker("webhooks", "test", webhook_id, "--json")[0])["webhook_id"] == webhook_id
    assert stoker("webhooks", "test", webhook_id)[1].endswith(f" is queued; see `stoker webhooks log {webhook_id}`\n")
    sending = webhooks.claim(api.database, webhook_id, max_attempts=3, claim_seconds=30)
    assert sending is not None
    webhooks.record_delivered(api.database, sending, 204)
    entries = json.loads(stoker("webhooks", "log", webhook_id, "--json")[0])
    assert [entry["state"] for entry in entries] == ["pending", "delivered"]
    assert json.loads(stoker("webhooks", "log", webhook_id, "--limit", "1", "--json")[0]) == entries[:1]
    out, _ = stoker("webhooks", "log", webhook_id)
    assert "webhook.test" in out
    assert "delivered" in out
    assert "204" in out
    assert max(map(len, out.splitlines())) <= 80
    stoker("webhooks", "delete", webhook_id)
    assert "there is no webhook" in one_sentence(stoker("webhooks", "log", webhook_id, code=2)[1])
    assert "an address that is not public" in one_sentence(stoker("webhooks", "create", "http://127.0.0.1/", code=2)[1])
    assert "batch.done" in one_sentence(
        stoker("webhooks", "create", "http://1.1.1.1/", "--event", "batch.done", code=2)[1]
    )


def test_doctor_names_each_problem_and_its_fix(
    api: LiveApi, stoker: Any, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    """A person at night needs the next step, not a theory."""
    monkeypatch.setenv("STOKER_REDIS_URL", redis_url)
    findings = {each["name"]: each for each in json.loads(stoker("doctor", "--json", code=1)[0])}
    verdicts = {name: finding["verdict"] for name, finding in findings.items()}
    assert verdicts["python"] == verdicts["torch"] == verdicts["database"] == verdicts["schema"] == "ok"
    assert verdicts["redis"] == verdicts["redis options"] == verdicts["store"] == verdicts["clock"] == "ok"
    assert verdicts["slots"] == "fail"
    assert all(finding["remedy"] for finding in findings.values() if finding["verdict"] != "ok")
    monkeypatch.setenv("STOKER_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("STOKER_STORE_URL", "/proc/nothing")
    monkeypatch.setenv("STOKER_DATABASE_URL", "sqlite:////proc/none.db")
    out, _ = stoker("doctor", code=1)
    assert out.count("fail") >= 3
    assert "STOKER_REDIS_URL" in out
    assert max(map(len, out.splitlines())) <= 80
