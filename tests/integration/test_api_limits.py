"""Limits of projects over HTTP: refused with 429 and a time to wait, nothing left behind, the next project unharmed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from jobs.config.limits import ProjectLimits
from jobs.config.settings import Settings
from jobs.data.store import Store
from jobs.db.database import Database
from jobs.db.states import BatchState
from jobs.db.tables import Batch, Job, StoredFile
from jobs.errors import StokerError, TooManyRequests
from jobs.ledger import jobs as job_ledger
from jobs.ledger.groups import batches
from scheduler.api.throttle import Throttle
from scheduler.control.admission import row_counts as admission
from scheduler.control.planning.planner import plan_job
from scheduler.openai.lifecycle import read_batch
from tests.conftest import RedisServer, wait_until
from tests.support import tiny
from tests.support.live_api import LiveApi, live_api, spec_document
from tests.support.rows import write_rows

ROWS, BYTES, RATE = 10, 10_000, 50


@pytest.fixture
def limited(settings: Settings) -> Settings:
    """Two projects with limits, and all others without any."""
    limits = ProjectLimits(queued_rows=ROWS, upload_bytes=BYTES)
    return settings.model_copy(update={"projects": {"mine": limits, "theirs": limits}})


@pytest.fixture
def api(limited: Settings, sqlite_database: Database) -> Iterator[LiveApi]:
    """A running API."""
    with live_api(limited, sqlite_database) as running:
        yield running


@pytest.fixture
def mine(api: LiveApi) -> httpx.Client:
    """A client of one of the limited projects."""
    return api.client_of("mine")


def check_refusal(answer: httpx.Response, code: str) -> dict[str, Any]:
    """The error of a 429 with a `Retry-After`."""
    assert answer.status_code == 429, answer.text
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_exceeded", code)
    return dict(error)


def upload(http: httpx.Client, content: bytes, *, purpose: str = "input") -> httpx.Response:
    """An upload's answer."""
    return http.post("/v1/files", data={"purpose": purpose}, files={"file": ("rows.jsonl", content)})


def batch_file(http: httpx.Client, num_lines: int, *, model: str = "m") -> str:
    """Upload a batch file of `num_lines` lines. Returns its id."""
    body = {"model": model, "input": "x"}
    lines = [
        json.dumps({"custom_id": f"c{number}", "method": "POST", "url": "/v1/classify", "body": body})
        for number in range(num_lines)
    ]
    return str(upload(http, "\n\n".join(lines).encode(), purpose="batch").json()["id"])


def create(http: httpx.Client, file_id: str, **fields: Any) -> httpx.Response:
    """A new batch's answer."""
    request = {"input_file_id": file_id, "endpoint": "/v1/classify", "completion_window": "24h", **fields}
    return http.post("/v1/batches", json=request)


# -- rows in the queue ---------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_jobs_and_batches_for_now(api: LiveApi, mine: httpx.Client, tmp_path: Path) -> None:
    eight = spec_document(write_rows(tmp_path / "8.jsonl", 8))
    three = spec_document(write_rows(tmp_path / "3.jsonl", 3))
    first = mine.post("/v1/jobs", json=eight).json()
    assert first["counts"]["total"] == 8
    error = check_refusal(mine.post("/v1/jobs", json=three), "queued_rows_exceeded")
    assert "project 'mine' has 8 rows in the queue, and this submission has 3 more; its limit is 10" in error["message"]
    file_id = batch_file(mine, 3)
    check_refusal(create(mine, file_id), "queued_rows_exceeded")
    theirs = api.client_of("theirs")
    assert theirs.post("/v1/jobs", json=eight).status_code == 201
    assert api.http.post("/v1/jobs", json=eight).status_code == 201, "the operator has no limit here"
    ended = mine.post(f"/v1/jobs/{first['id']}/cancel").json()
    assert create(mine, file_id).json()["request_counts"]["total"] == 3
    check_refusal(mine.post(f"/v1/jobs/{ended['id']}/retry"), "queued_rows_exceeded")
    check_refusal(api.http.post(f"/v1/jobs/{ended['id']}/retry"), "queued_rows_exceeded")
    assert mine.post("/v1/jobs", json=three).status_code == 201
    with api.database.read() as session:
        assert len([job for job in session.exec(select(Job)) if job.project == "mine"]) == 2, "refusals leave nothing"
        assert len(session.exec(select(Batch)).all()) == 1


def test_a_job_larger_than_the_queue_is_refused_at_once(api: LiveApi, mine: httpx.Client, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "11.jsonl", ROWS + 1)
    file_id = batch_file(mine, ROWS + 1)
    answers = {
        "input.path": mine.post("/v1/jobs", json=spec_document(rows)),
        "input_file_id": create(mine, file_id),
    }
    for param, answer in answers.items():
        assert answer.status_code == 400
        assert "retry-after" not in answer.headers
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("too_many_rows", param)
        assert "more than 10 rows, which the queue of project 'mine' can never hold" in error["message"]
    assert mine.get("/v1/jobs").json()["data"] == mine.get("/v1/batches").json()["data"] == []


def test_a_repeated_submission_finds_its_job_in_a_full_queue(mine: httpx.Client, tmp_path: Path) -> None:
    document = spec_document(write_rows(tmp_path / "10.jsonl", ROWS))
    first, again = (mine.post("/v1/jobs", json=document, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]


def test_an_input_that_takes_long_to_count_is_counted_by_the_scheduler(
    api: LiveApi, mine: httpx.Client, limited: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "COUNT_SECONDS", -1.0)
    large = spec_document(write_rows(tmp_path / "large.jsonl", ROWS))
    first = mine.post("/v1/jobs", json=large).json()
    assert first["counts"]["total"] == 0
    for answer in (mine.post("/v1/jobs", json=large), create(mine, batch_file(mine, 2))):
        assert "still being counted" in check_refusal(answer, "queued_rows_exceeded")["message"]
    write_rows(tmp_path / "large.jsonl", ROWS + 1)
    plan_job(api.database, api.store, limited, first["id"])
    ended = mine.get(f"/v1/jobs/{first['id']}").json()
    assert (ended["state"], ended["error"]["code"]) == ("failed", "too_many_rows")
    monkeypatch.undo()
    assert mine.post("/v1/jobs", json=spec_document(write_rows(tmp_path / "x.jsonl", ROWS))).status_code == 201


@pytest.mark.parametrize("num_lines", [ROWS, ROWS + 1])
def test_a_batch_that_was_not_counted_in_time_is_refused_when_it_is_read(
    api: LiveApi,
    mine: httpx.Client,
    limited: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_lines: int,
) -> None:
    model = tiny.tiny_classifier(tmp_path / "model")
    monkeypatch.setattr(admission, "COUNT_SECONDS", -1.0)
    batch = create(mine, batch_file(mine, num_lines, model=str(model))).json()
    read_batch(api.database, api.store, limited.model_copy(update={"any_model": True}), batch["id"])
    read = mine.get(f"/v1/batches/{batch['id']}").json()
    if num_lines <= ROWS:
        assert read["status"] == "in_progress", read
        assert mine.get("/v1/limits").json()["queued_rows"] == {"limit": ROWS, "used": num_lines}
    else:
        assert (read["status"], read["errors"]["data"][0]["code"]) == ("failed", "too_many_tasks")
        assert "queued_rows" in read["errors"]["data"][0]["message"]
        assert not list(api.store.list("batches/")), "nothing of it is left"


def test_a_batch_that_takes_answers_over_needs_room_for_the_rest_only(
    api: LiveApi, mine: httpx.Client, tmp_path: Path
) -> None:
    file_id = batch_file(mine, ROWS + 5)
    with api.database.write() as session:
        session.add(
            Batch(
                id="batch_before", project="mine", state=BatchState.CANCELLED, endpoint="/v1/classify",
                input_file_id=file_id, completion_window="24h", digest="d", created_at=1.0, expires_at=2.0,
                num_lines=ROWS + 5, num_completed=9, num_failed=0,
            )
        )  # fmt: skip
    assert create(mine, file_id).status_code == 400
    assert create(mine, file_id, retry_of="batch_before").status_code == 200
    assert mine.get("/v1/limits").json()["queued_rows"]["used"] == 6


def test_many_submissions_at_once_stay_within_the_limit(api: LiveApi, tmp_path: Path) -> None:
    document = spec_document(write_rows(tmp_path / "3.jsonl", 3))
    clients = [api.client_of("mine") for _ in range(12)]
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda http=http: statuses.append(http.post("/v1/jobs", json=document).status_code))
        for http in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] * 3 + [429] * 9


# -- uploads -------------------------------------------------------------------------------------------------------


def files_left(api: LiveApi) -> int:
    """Objects in the store, temporary ones too."""
    return len([path for path in Path(api.settings.resolved_store_url).rglob("*") if path.is_file()])


def test_an_upload_that_does_not_fit_is_refused_and_leaves_nothing(api: LiveApi, mine: httpx.Client) -> None:
    kept = upload(mine, bytes(6_000)).json()
    check_refusal(upload(mine, bytes(4_001)), "upload_bytes_exceeded")

    def slowly() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(100):
            yield bytes(1000)
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    check_refusal(mine.post("/v1/files", content=slowly(), headers=headers), "upload_bytes_exceeded")
    assert upload(api.client_of("theirs"), bytes(4_001)).status_code == 200
    assert files_left(api) == 2
    assert upload(mine, bytes(4_000)).status_code == 200, "exactly as much as there is room for"
    check_refusal(upload(mine, b""), "upload_bytes_exceeded")
    assert mine.delete(f"/v1/files/{kept['id']}").status_code == 200
    assert upload(mine, bytes(6_000)).status_code == 200


def test_a_large_body_is_refused_before_it_is_sent(api: LiveApi, mine: httpx.Client) -> None:
    upload(mine, bytes(6_000))
    key = mine.headers["Authorization"]
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {key}\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n"
    for length, status in ((2**40, b"413"), (BYTES + 2**16, b"429")):
        answer = api.send_raw(f"{head}Content-Length: {length}\r\n\r\n")
        assert answer.split(b" ", 2)[1] == status, answer
        assert (b"retry-after" in answer) == (status == b"429")
    assert files_left(api) == 1


def test_a_file_larger_than_the_limit_is_not_asked_to_retry_later(mine: httpx.Client) -> None:
    answer = upload(mine, bytes(BYTES + 1 + 2**16))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "the 10000 bytes that project 'mine' may store" in answer.json()["error"]["message"]
    assert "retry-after" not in answer.headers


def test_many_uploads_at_once_stay_within_the_limit(api: LiveApi) -> None:
    clients = [api.client_of("mine") for _ in range(8)]
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda http=http: answers.append(upload(http, bytes(4_000)))) for http in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 6
    with api.database.read() as session:
        assert sum(file.num_bytes for file in session.exec(select(StoredFile))) == 8_000
    assert files_left(api) == 2


# -- requests per second -------------------------------------------------------------------------------------------


@contextmanager
def throttle_of(settings: Settings, *, outage_seconds: float = 3600.0) -> Iterator[Throttle]:
    """One API process's count."""
    made = Throttle(settings, redis_seconds=30.0, outage_seconds=outage_seconds)
    yield made
    made.close()


@pytest.fixture
def rated(settings: Settings, redis_server: RedisServer) -> Settings:
    """Settings with a rate for every project but the operator's, over a real Redis."""
    limits = {"*": ProjectLimits(requests_per_second=RATE)}
    return settings.model_copy(update={"projects": limits, "redis_url": redis_server.url})


def admits(one: Throttle, project: str = "mine") -> bool:
    """Whether a request passes."""
    try:
        one.admit(project)
    except TooManyRequests:
        return False
    return True


def admitted(throttles: list[Throttle], number: int) -> tuple[int, float]:
    """How many requests pass, spread over the processes, and the most that the rate of one process allows."""
    started = time.monotonic()
    passed = sum(admits(throttles[turn % len(throttles)]) for turn in range(number))
    return passed, RATE * (time.monotonic() - started + 1) + 1


def test_all_processes_count_together(rated: Settings) -> None:
    with throttle_of(rated) as one, throttle_of(rated) as other:
        passed, most = admitted([one, other], 10 * RATE)
        assert RATE <= passed <= most
        assert all(admits(one, "default") for _ in range(3 * RATE)), "the operator has no rate here"
        assert admits(other, "theirs"), "each project has its own"
        wait_until(lambda: admits(one), "room again")


def test_without_redis_each_process_counts_by_itself(
    rated: Settings, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with throttle_of(rated) as one:
        assert admits(one)
        redis_server.kill()
        passed, most = admitted([one], 10 * RATE)
        assert RATE <= passed <= most
        assert len([line for line in caplog.messages if "counts requests on its own" in line]) == 1


def test_when_redis_is_back_they_count_together_again(rated: Settings, redis_server: RedisServer) -> None:
    with throttle_of(rated, outage_seconds=0.0) as one, throttle_of(rated, outage_seconds=0.0) as other:
        redis_server.kill()
        assert admits(one)
        redis_server.start()
        passed, most = admitted([one, other], 10 * RATE)
        assert RATE <= passed <= most


def test_a_rate_is_a_429_at_every_route_but_health(rated: Settings, sqlite_database: Database) -> None:
    settings = rated.model_copy(update={"projects": {"*": ProjectLimits(requests_per_second=1)}})
    with live_api(settings, sqlite_database) as api:
        mine = api.client_of("mine")

        def refused(path: str) -> httpx.Response:
            seen: list[httpx.Response] = []

            def is_refused() -> bool:
                seen.append(mine.get(path))
                return seen[-1].status_code == 429

            wait_until(is_refused, f"{path} is refused")
            return seen[-1]

        for path in ("/v1/jobs", "/v1/files/file_x", "/v1/limits"):
            check_refusal(refused(path), "rate_limit_exceeded")
        assert all(mine.get("/healthz").status_code == 200 for _ in range(10))
        assert all(api.http.get("/v1/jobs").status_code == 200 for _ in range(10))


# -- looking at them -----------------------------------------------------------------------------------------------


def test_a_project_sees_its_limits_and_its_usage(
    api: LiveApi, mine: httpx.Client, tmp_path: Path, limited: Settings
) -> None:
    mine.post("/v1/jobs", json=spec_document(write_rows(tmp_path / "4.jsonl", 4)))
    upload(mine, bytes(100))
    found = mine.get("/v1/limits").json()
    share = found.pop("share")
    assert found == {
        "object": "limits",
        "project": "mine",
        "queued_rows": {"limit": ROWS, "used": 4},
        "upload_bytes": {"limit": BYTES, "used": 100},
        "requests_per_second": None,
    }
    assert api.client.limits("mine") == {**found, "share": share}
    assert api.client.limits()["queued_rows"] == {"limit": None, "used": 0}
    assert mine.get("/v1/limits", params={"project": "theirs"}).status_code == 404
    assert mine.get("/v1/limits", params={"project": "a b"}).status_code == 400


def test_jobs_from_before_the_limit_count_as_well(limited: Settings, sqlite_database: Database, tmp_path: Path) -> None:
    with live_api(limited.model_copy(update={"projects": {}}), sqlite_database) as free:
        path = write_rows(tmp_path / "50.jsonl", 50)
        job = free.client_of("mine").post("/v1/jobs", json=spec_document(path)).json()
    plan_job(sqlite_database, Store(limited.resolved_store_url), limited.model_copy(update={"projects": {}}), job["id"])
    with live_api(limited, sqlite_database) as api:
        mine = api.client_of("mine")
        assert mine.get("/v1/limits").json()["queued_rows"] == {"limit": ROWS, "used": 50}
        document = spec_document(write_rows(tmp_path / "1.jsonl", 1))
        check_refusal(mine.post("/v1/jobs", json=document), "queued_rows_exceeded")
        job_ledger.fail(sqlite_database, job["id"], StokerError("enough"))
        assert mine.post("/v1/jobs", json=document).status_code == 201


def test_a_batch_of_the_operator_uses_up_no_projects_limit(api: LiveApi, mine: httpx.Client) -> None:
    file_id = batch_file(mine, ROWS)
    made = create(api.http, file_id)
    assert made.status_code == 200
    assert mine.get("/v1/limits").json()["queued_rows"]["used"] == 0
    batches.cancel(api.database, made.json()["id"])


def test_shares_show_what_projects_hold_and_have_used(settings: Settings, sqlite_database: Database) -> None:
    limits = {"mine": ProjectLimits(weight=3, slots=2, gpu_hours=10), "theirs": ProjectLimits()}
    with live_api(settings.model_copy(update={"projects": limits}), sqlite_database) as api:
        share = api.client_of("mine").get("/v1/limits").json()["share"]
        assert share == {
            "object": "share", "project": "mine", "weight": 3.0, "slots": 2, "slots_held": 0, "slots_lately": 0.0,
            "gpu_hours": {"limit": 10.0, "used": 0.0},
        }  # fmt: skip
        own = api.client_of("mine").get("/v1/limits/shares").json()["data"]
        assert own == [share]
        every = api.client_of("default").get("/v1/limits/shares").json()["data"]
        assert [one["project"] for one in every] == ["default", "mine", "theirs"]


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"weight": "inf"}, {"slots": -1}, {"gpu_hours": -0.5}])
def test_wrong_shares_are_refused_by_name(wrong: dict[str, Any]) -> None:
    [name] = wrong
    with pytest.raises(ValueError, match=name):
        ProjectLimits.model_validate(wrong)
